"""A kind of label for tests: any number of rectangles with classes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import cv2
import numpy as np

from pipeline.config.targets import TargetConfig
from pipeline.images.geometry import Geometry, Size
from pipeline.targets.base import BadLabel, ClassMap, Field, Merge, Target


class Boxes(NamedTuple):
    corners: np.ndarray  # float64 [n, 2, 2]: left top, right bottom; (x, y)
    labels: np.ndarray  # int64 [n]


@dataclass(frozen=True)
class Rectangles(Target):
    kind: ClassVar[str] = "rectangles"
    default_members: ClassVar[tuple[str, ...]] = ("boxes.json",)
    moves: ClassVar[bool] = True
    reads: ClassVar[int] = 1 << 20
    columns: ClassVar[Mapping[str, Merge]] = {"boxes": "sum", "most": "max"}
    counted: ClassVar[str] = "boxes"

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        return cls(members)

    def inputs(self) -> dict[str, Any]:
        return {"members": list(self.members)}

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        return {"boxes": Field("float32", (None, 4)), "box_label": Field("int64", (None,))}

    def decode(self, members: Mapping[str, Any], image: Size | None) -> Boxes:
        try:
            rows = json.loads(bytes(self.member(members)))
        except ValueError:
            raise BadLabel("the boxes are no JSON") from None
        return Boxes(
            np.array([row[:4] for row in rows], np.float64).reshape(-1, 2, 2),
            np.array([row[4] for row in rows], np.int64),
        )

    def transform(self, value: Boxes, geometry: Geometry) -> Boxes:
        """Those of which something is seen, cut at the border."""
        moved = geometry.apply(value.corners.reshape(-1, 2)).reshape(-1, 2, 2)
        moved = np.stack([moved.min(axis=1), moved.max(axis=1)], axis=1).clip(0, geometry.size[::-1])
        seen = (moved[:, 1] > moved[:, 0]).all(axis=1)
        return Boxes(moved[seen], value.labels[seen])

    def pack(self, value: Boxes, fields: Mapping[str, Any], row: int) -> None:
        fields["boxes"][row], fields["box_label"][row] = value.corners.reshape(-1, 4), value.labels

    def summarise(self, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> dict[str, int]:
        count = len(self.decode(content, None).labels)
        return {"boxes": count, "most": count}

    def count(self, value: Boxes) -> Mapping[int, int]:
        return Counter(value.labels.tolist())

    def draw(self, picture: np.ndarray, value: Boxes, names: Any) -> str:
        for (left, top), (right, bottom) in value.corners.astype(int).tolist():
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), (255, 0, 0))
        return f"{len(value.labels)} boxes"
