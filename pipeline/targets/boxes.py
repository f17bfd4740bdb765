"""Boxes with classes: COCO annotations in a JSON member, or YOLO lines in a text member."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field as Setting
from pydantic import field_validator

from pipeline.config.class_names import normalise_class_name
from pipeline.config.section import Share
from pipeline.errors import ConfigError, DataError
from pipeline.images.boxes import draw_boxes, moved_boxes
from pipeline.targets._coco import read_annotations
from pipeline.targets._groups import GroupsConfig
from pipeline.targets.base import BadLabel, ClassMap, Field, Merge, Target

if TYPE_CHECKING:  # an index needs no image libraries
    from pipeline.config.targets import TargetConfig
    from pipeline.images.decode import Pixels
    from pipeline.images.geometry import Geometry, Size

LONGEST = 8 << 20  # bytes; indexing skips longer members, which consist mostly of outlines and run lengths
MOST_NAMED = 5  # categories or classes listed in one line
SMALLEST = 1e-3  # pixels; a box with a smaller side is dropped


class Boxes(NamedTuple):
    """The n boxes of an image; n is 0 for an image without objects."""

    corners: np.ndarray  # float64 [n, 4]: left, top, right, bottom in pixels
    labels: np.ndarray  # int64 [n], the stage's classes
    areas: np.ndarray  # float64 [n], square pixels of the object, which classify it as small, medium or large
    crowds: np.ndarray  # bool [n]: several objects in one box, which training and measures ignore
    size: tuple[int, int]  # (height, width) of the image, if known

    def of(self, rows: np.ndarray) -> Boxes:
        """A selection of the boxes."""
        return Boxes(self.corners[rows], self.labels[rows], self.areas[rows], self.crowds[rows], self.size)


class BoxesConfig(GroupsConfig):
    ids: Annotated[list[int], Setting(min_length=1)] | None = Setting(
        default=None,
        description="category ids in the order of the classes; default: 0, 1, ...; an annotation with the name of "
        "its `category` uses that instead",
    )
    min_visible: Share = Setting(
        default=0.25, description="minimum visible share of a box after crops and shifts; training drops others"
    )

    @field_validator("ids")
    @classmethod
    def one_class_each(cls, ids: list[int] | None) -> list[int] | None:
        twice = [one for one, count in Counter(ids or ()).items() if count > 1]
        if twice:
            raise ValueError(f"the id {twice[0]} once, as each class has its own id")
        return ids


@dataclass(frozen=True)
class BoxesTarget(Target):
    """Members ending in `json` are COCO's, others are YOLO's `class x y width height`, relative to the image.

    `numbers` maps the data set's classes, with their `names` and `ids`, to those of the stage; None if the classes are
    unknown.
    """

    kind: ClassVar[str] = "boxes"
    default_members: ClassVar[tuple[str, ...]] = ("json",)
    recognised_by_name: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    least_classes: ClassVar[int] = 1
    reads: ClassVar[int] = LONGEST
    columns: ClassVar[Mapping[str, Merge]] = {"boxes": "sum", "crowds": "sum", "empty": "sum", "most": "max"}
    counted: ClassVar[str] = "boxes"
    config: ClassVar[type[TargetConfig]] = BoxesConfig

    numbers: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    min_visible: float = 0.25

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        """Raises ConfigError if the numbers of ids and classes differ."""
        assert isinstance(config, BoxesConfig)
        if classes is None:
            return cls(members, min_visible=config.min_visible)
        ids = config.ids or range(len(classes.names))
        if len(ids) != len(classes.names):
            raise ConfigError(
                f"boxes.ids: found {len(ids)} ids for {len(classes.names)} classes; give the id of each class, in "
                "their order"
            )
        return cls(members, classes.numbers, classes.names, tuple(ids), config.min_visible)

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        """In training `boxes`, in pixels of the view; in evaluation `boxes_full`, at the image's own size."""
        labels = {"box_label": Field("int64", (None,))}
        if not evaluation:
            return {"boxes": Field("float32", (None, 4)), **labels}
        more = {"box_area": Field("float64", (None,)), "box_crowd": Field("bool", (None,))}
        return {
            "boxes_full": Field("float64", (None, 4)),
            **labels,
            **more,
            "boxes_full_size": Field("int32", (2,), fill=1),
        }

    def inputs(self) -> dict[str, Any]:
        given = {"member": self.members[0], "min_visible": self.min_visible, "labels": list(self.numbers or ())}
        return given if self.ids == tuple(range(len(self.ids))) else given | {"ids": list(self.ids)}

    def decode(self, members: Mapping[str, Any], image: Size | None) -> Boxes:
        data, member = bytes(self.member(members, "boxes")), self.members[0]
        read = self._of_coco if member.rpartition(".")[2] == "json" else self._of_yolo
        found = read(data, member, image)
        return found if (found.labels >= 0).all() else found.of(found.labels >= 0)

    def _of_coco(self, data: bytes, member: str, image: Size | None) -> Boxes:
        found = read_annotations(data, member, image)
        kinds = zip(found.categories.tolist(), found.names, strict=True)
        labels = [self._label(number, name, row) for row, (number, name) in enumerate(kinds)]
        return Boxes(found.boxes, np.array(labels, np.int64), found.areas, found.crowds, image or (0, 0))

    def _label(self, category: int, name: str | None, row: int) -> int:
        """The stage's class of an annotation, -1 if ignored. Raises BadLabel without an id, DataError if unknown."""
        if category < 0 and (name is None or self.numbers is None):
            raise BadLabel(f"annotation {row} has no category_id")
        if self.numbers is None:
            return category
        known = self._by_id.get(category) if name is None else self._by_name.get(normalise_class_name(name))
        if known is None:
            raise DataError(self._unknown(f"category id {category}" if name is None else f"category {name!r}"))
        return known

    @cached_property
    def _by_id(self) -> dict[int, int]:
        return dict(zip(self.ids, self.numbers or (), strict=True))

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return dict(zip(self.names, self.numbers or (), strict=True))

    def _unknown(self, what: str) -> str:
        listed = ", ".join(map(str, self.ids[:MOST_NAMED])) + (" ..." if len(self.ids) > MOST_NAMED else "")
        return (
            f"has the {what} in its boxes, but the {len(self.ids)} classes have the ids {listed}; name all classes, "
            "or give their category ids in `targets.boxes.ids`"
        )

    def _of_yolo(self, data: bytes, member: str, image: Size | None) -> Boxes:
        try:
            lines = data.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise BadLabel(f"the member {member} is not text") from None
        rows = [yolo_line(line, number) for number, line in enumerate(lines, 1) if line.strip()]
        size = image or (1, 1)
        labels = [self._label(int(row[0]), None, number) for number, row in enumerate(rows)]
        middles, sides = np.split(np.array([row[1:] for row in rows], np.float64).reshape(-1, 4), 2, axis=1)
        shares = np.concatenate([middles - sides / 2, middles + sides / 2], axis=1).clip(0, 1)
        corners = shares * [size[1], size[0], size[1], size[0]]
        areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
        return Boxes(corners, np.array(labels, np.int64), areas, np.zeros(len(rows), bool), image or (0, 0))

    def transform(self, value: Boxes, geometry: Geometry) -> Boxes:
        """The boxes of which enough is visible, clipped to the view."""
        moved, shares = moved_boxes(value.corners, geometry)
        there = ((moved[:, 2:] - moved[:, :2]) > SMALLEST).all(axis=1) & (shares >= self.min_visible)
        return value._replace(corners=moved, areas=value.areas * shares, size=geometry.size).of(there)

    def pack(self, value: Boxes, fields: Mapping[str, Any], row: int) -> None:
        if "boxes" in fields:
            alone = value.of(~value.crowds)
            fields["boxes"][row], fields["box_label"][row] = alone.corners.astype(np.float32), alone.labels
            return
        fields["boxes_full"][row], fields["box_label"][row] = value.corners, value.labels
        fields["box_area"][row], fields["box_crowd"][row] = value.areas, value.crowds
        fields["boxes_full_size"][row] = value.size

    def summarise(self, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> dict[str, int]:
        """Counts of boxes, crowds and images without either; no columns for a member that is too long."""
        if self.members[0] not in content:
            return super().summarise(sizes, content)
        found = self.decode(content, None)
        count, crowds = len(found.labels), int(found.crowds.sum())
        return {"boxes": count - crowds, "crowds": crowds, "empty": int(count == 0), "most": count}

    def count(self, value: Boxes) -> Mapping[int, int]:
        return Counter(value.labels[~value.crowds].tolist())

    def draw(self, picture: Pixels, value: Boxes, names: Sequence[str]) -> str:
        """Draw outlines into the picture in place; returns the number of boxes of the most frequent classes."""
        draw_boxes(picture, value.corners, value.labels.tolist())
        common = Counter(self.count(value)).most_common()
        titles = [f"{count} {names[label] if label < len(names) else label}" for label, count in common]
        return ", ".join(titles[:MOST_NAMED]) + (" ..." if len(titles) > MOST_NAMED else "") or "no boxes"


def yolo_line(line: str, number: int) -> list[float]:
    """Class, centre and sides, relative to the image. Raises BadLabel with the line `number`, counted from 1."""
    words = line.split()
    try:
        row = list(map(float, words))
    except ValueError:
        row = []
    if len(row) != 5 or not all(map(math.isfinite, row)) or not row[0].is_integer():
        raise BadLabel(f"line {number} is {line.strip()[:60]!r}, not 'class x y width height'")
    _, x, y, width, height = row
    if width < 0 or height < 0:
        raise BadLabel(f"line {number} has the inverted box {line.strip()[:60]!r}; width and height must be above 0")
    if not width or not height:
        raise BadLabel(f"line {number} has the box {line.strip()[:60]!r}, which has no area")
    if any(max(middle - side / 2, 0) >= min(middle + side / 2, 1) for middle, side in ((x, width), (y, height))):
        raise BadLabel(
            f"line {number} has the box {line.strip()[:60]!r}, outside its image; give shares of its sides, 0 to 1"
        )
    return row
