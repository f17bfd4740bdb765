"""One number per image, such as a rating: a member with a decimal number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from pipeline.config.targets import TargetConfig
from pipeline.images.geometry import Size
from pipeline.targets.base import BadLabel, ClassMap, Field, Target


@dataclass(frozen=True)
class Rating(Target):
    """A value is a float."""

    kind: ClassVar[str] = "rating"
    default_members: ClassVar[tuple[str, ...]] = ("rating",)
    classed: ClassVar[bool] = False

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        return cls(members)

    def inputs(self) -> dict[str, Any]:
        return {"member": self.members[0]}

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        return {"rating": Field("float32")}

    def decode(self, members: Mapping[str, Any], image: Size | None) -> float:
        text = bytes(self.member(members))
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadLabel(f"the rating is {text[:40]!r}, not a number")
        return value

    def pack(self, value: float, fields: Mapping[str, Any], row: int) -> None:
        fields["rating"][row] = value

    def draw(self, picture: np.ndarray, value: float, names: Sequence[str]) -> str:
        return f"{value:g}"
