"""A class per pixel: a PNG of the image's size, whose palette indices or grey values are class ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import cv2
import numpy as np
from pydantic import Field as Setting

from pipeline.config.targets import TargetConfig
from pipeline.errors import ConfigError, DataError
from pipeline.images.class_map import decode_class_map, draw_classes, read_map_header
from pipeline.images.decode import BadImage, Pixels
from pipeline.images.geometry import Geometry, Size
from pipeline.targets._groups import GroupsConfig
from pipeline.targets.base import BadLabel, ClassMap, Field, Target

IGNORED, OUTSIDE = -1, -2
MOST_IDS = 1 << 16  # in a 16-bit PNG
MOST_CLASSES = 1 << 15  # in an int16
MOST_NAMED = 5  # ids or classes listed in one line


class MaskConfig(GroupsConfig):
    ignore: Annotated[int, Setting(ge=0, lt=MOST_IDS)] = Setting(
        default=255, description="id of pixels without a class, which training and measures ignore"
    )


@dataclass(frozen=True)
class Mask(Target):
    """A value is int8 [height, width], or int16 above 127 classes: the stage's class of each pixel, -1 if ignored.

    `numbers` maps the data set's ids to the stage's classes; None if the classes are unknown.
    """

    kind: ClassVar[str] = "mask"
    default_members: ClassVar[tuple[str, ...]] = ("seg.png",)
    moves: ClassVar[bool] = True
    counted: ClassVar[str] = "pixels"
    config: ClassVar[type[TargetConfig]] = MaskConfig

    numbers: tuple[int, ...] | None = None
    num_classes: int = MOST_CLASSES
    ignore: int = 255

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        """Raises ConfigError if the id of ignored pixels is also the id of a class."""
        assert isinstance(config, MaskConfig)
        if classes is None:
            return cls(members, ignore=config.ignore)
        if config.ignore < len(classes.numbers):
            raise ConfigError(
                f"mask.ignore: found {config.ignore}, which is class {classes.names[config.ignore]!r} of "
                f"{len(classes.numbers)}; use an id above them, and 16-bit PNGs where 255 is too small"
            )
        return cls(members, classes.numbers, classes.num_classes, config.ignore)

    @property
    def dtype(self) -> str:
        return "int8" if self.num_classes <= 127 else "int16"

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        """In training `mask`, transformed to the view; in evaluation `mask_full`, the labels at their own size."""
        if evaluation:
            return {"mask_full": Field(self.dtype, (None,)), "mask_full_size": Field("int32", (2,))}
        return {"mask": Field(self.dtype, size, fill=IGNORED)}

    def inputs(self) -> dict[str, Any]:
        return {"member": self.members[0], "ignore": self.ignore, "labels": list(self.numbers or ())}

    def decode(self, members: Mapping[str, Any], image: Size | None) -> np.ndarray:
        data = self.member(members, "mask")
        try:
            if image is not None:
                check_size(read_map_header(data).size, image)
            ids = decode_class_map(data)
        except BadImage as bad:
            raise BadLabel(str(bad)) from None
        if self._plain and ids.dtype == np.uint8:
            # 255 becomes -1; invalid ids become values below -1 or above the classes.
            value: np.ndarray = ids.view(np.int8)
            outside = value.min() < IGNORED or value.max() >= self.num_classes
        else:
            value = cv2.LUT(ids, self._classes[:256]) if ids.dtype == np.uint8 else self._classes[ids]
            outside = value.min() == OUTSIDE
        if outside:
            raise DataError(self._outside(np.unique(ids[self._classes[ids] == OUTSIDE]).tolist()))
        return value

    @cached_property
    def _plain(self) -> bool:
        """Whether ids equal the stage's classes and 255 is ignored."""
        return self.ignore == 255 and self.dtype == "int8" and self.numbers == tuple(range(self.num_classes))

    @cached_property
    def _classes(self) -> np.ndarray:
        """The class of every id that a PNG can contain."""
        numbers = range(MOST_CLASSES) if self.numbers is None else self.numbers
        table = np.full(MOST_IDS, OUTSIDE, self.dtype)
        table[: len(numbers)] = numbers
        table[self.ignore] = IGNORED
        return table

    def _outside(self, ids: list[int]) -> str:
        named = ", ".join(map(str, ids[:MOST_NAMED])) + (" ..." if len(ids) > MOST_NAMED else "")
        last = (MOST_CLASSES if self.numbers is None else len(self.numbers)) - 1
        return (
            f"has the class ids {named} in its mask, but ids must be 0 to {last}, or {self.ignore} where ignored; "
            "name all classes, or correct the ids (`minivit shards make masks --remap`)"
        )

    def transform(self, value: np.ndarray, geometry: Geometry) -> np.ndarray:
        return geometry.warp_mask(value, IGNORED)

    def pack(self, value: np.ndarray, fields: Mapping[str, Any], row: int) -> None:
        if "mask" in fields:
            fields["mask"][row] = value
        else:
            fields["mask_full"][row], fields["mask_full_size"][row] = value.reshape(-1), value.shape

    def count(self, value: np.ndarray) -> Mapping[int, int]:
        """Number of pixels of each class that occurs."""
        counts = np.bincount(value[value >= 0])
        return {label: int(counts[label]) for label in np.flatnonzero(counts).tolist()}

    def draw(self, picture: Pixels, value: np.ndarray, names: Sequence[str]) -> str:
        """Overlay labelled pixels of the picture with class colours, in place; returns the largest classes."""
        draw_classes(picture, value)
        largest = sorted(self.count(value).items(), key=lambda one: -one[1])
        titles = [names[label] if label < len(names) else str(label) for label, _ in largest]
        return ", ".join(titles[:MOST_NAMED]) + (" ..." if len(titles) > MOST_NAMED else "") or "all ignored"


def check_size(found: Size, image: Size, noun: str = "mask") -> None:
    """Raise BadLabel if a map's size differs from its image's."""
    if found != image:
        (height, width), (full, across) = found, image
        turned = f"; {noun}s are for the image as its EXIF data rotate it" if found == image[::-1] else ""
        raise BadLabel(f"the {noun} has {width} x {height} pixels, but its image {across} x {full}{turned}")
