"""A kind of a test: a caption, and its language in another member."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from pipeline.config.targets import TargetConfig
from pipeline.images.geometry import Size
from pipeline.targets.base import BadLabel, ClassMap, Field, Target

LANGUAGES = "en", "de"


class Caption(NamedTuple):
    text: bytes
    language: int


class TextConfig(TargetConfig):
    language: str | None = None

    @property
    def members(self) -> tuple[str, ...]:
        return () if self.member is None else (self.member, self.language or "lang")


@dataclass(frozen=True)
class TextTarget(Target):
    kind: ClassVar[str] = "text"
    default_members: ClassVar[tuple[str, ...]] = ("txt", "lang")
    classed: ClassVar[bool] = False
    config: ClassVar[type[TargetConfig]] = TextConfig

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        return cls(members)

    def inputs(self) -> dict[str, Any]:
        return {"members": list(self.members)}

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        return {"text": Field("uint8", (None,)), "language": Field("int8", fill=-1)}

    def decode(self, members: Mapping[str, Any], image: Size | None) -> Caption:
        text, language = bytes(self.member(members)), bytes(members[self.members[1]]).decode()
        if language not in LANGUAGES:
            raise BadLabel(f"no language {language!r}")
        return Caption(text, LANGUAGES.index(language))

    def pack(self, value: Caption, fields: Mapping[str, Any], row: int) -> None:
        fields["text"][row], fields["language"][row] = np.frombuffer(value.text, np.uint8), value.language
