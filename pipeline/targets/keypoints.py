"""Keypoints of the instances of an image: COCO annotations in a JSON member."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field as Setting

from pipeline.config.section import Rate
from pipeline.config.targets import TargetConfig
from pipeline.errors import DataError
from pipeline.images.frame import PADDING, frame_matrix
from pipeline.images.geometry import Geometry
from pipeline.images.keypoints import draw_keypoints
from pipeline.metrics.keypoints import HIDDEN, VISIBLE
from pipeline.targets._coco import is_number, read_annotations
from pipeline.targets.base import BadLabel, ClassMap, Field, Merge, Target

if TYPE_CHECKING:  # an index needs no image libraries
    from pipeline.images.decode import Pixels
    from pipeline.images.geometry import Size

LONGEST = 8 << 20  # bytes; indexing skips longer members, which consist mostly of outlines and run lengths


class Instances(NamedTuple):
    """The n instances of an image with a labelled keypoint; K keypoints each."""

    points: np.ndarray  # float64 [n, K, 2], (x, y) in pixels
    flags: np.ndarray  # int64 [n, K], COCO's v
    boxes: np.ndarray  # float64 [n, 4]: left, top, right, bottom
    areas: np.ndarray  # float64 [n], square pixels
    left_out: int = 0  # number of other instances, without a labelled keypoint
    mirrored: bool = False  # whether left and right are swapped
    views: np.ndarray | None = None  # uint8 [n, C, h, w], evaluation's view of each
    size: tuple[int, int] = (0, 0)  # of the image

    def of(self, rows: slice) -> Instances:
        return self._replace(
            points=self.points[rows], flags=self.flags[rows], boxes=self.boxes[rows], areas=self.areas[rows]
        )


class KeypointsConfig(TargetConfig):
    scale_jitter: Rate = Setting(
        default=0.25, description="maximum share by which training scales an instance up or down"
    )
    rotation: Annotated[float, Setting(ge=0, le=180)] = Setting(
        default=30.0, description="maximum angle in degrees by which training rotates an instance either way"
    )


@dataclass(frozen=True)
class Keypoints(Target):
    """The classes are the keypoints, in annotation order; `numbers` maps each to the stage's, -1: ignored.

    Training sees one instance of an image, drawn for each slot and framed by its box. Evaluation sees all of them, each
    framed without random draws. An image without instances contributes nothing to training, but is valid.
    """

    kind: ClassVar[str] = "keypoints"
    default_members: ClassVar[tuple[str, ...]] = ("json",)
    recognised_by_name: ClassVar[bool] = False
    moves: ClassVar[bool] = True
    picks: ClassVar[bool] = True
    frames: ClassVar[bool] = True
    least_classes: ClassVar[int] = 1
    reads: ClassVar[int] = LONGEST
    columns: ClassVar[Mapping[str, Merge]] = {"instances": "sum", "left_out": "sum", "keypoints": "max"}
    counted: ClassVar[str] = "keypoints"
    config: ClassVar[type[TargetConfig]] = KeypointsConfig

    numbers: tuple[int, ...] | None = None
    num_keypoints: int = 0  # of the stage
    scale_jitter: float = 0.25
    rotation: float = 30.0

    @classmethod
    def build(cls, members: tuple[str, ...], config: TargetConfig, classes: ClassMap | None) -> Self:
        assert isinstance(config, KeypointsConfig)
        jitter = config.scale_jitter, config.rotation
        if classes is None:
            return cls(members, None, 0, *jitter)
        return cls(members, classes.numbers, classes.num_classes, *jitter)

    def inputs(self) -> dict[str, Any]:
        jitter = {"scale_jitter": self.scale_jitter, "rotation": self.rotation}
        return {"member": self.members[0], "labels": list(self.numbers or ()), **jitter}

    def fields(self, size: Size, *, evaluation: bool) -> Mapping[str, Field]:
        """In training `keypoints`, (x, y, v) in pixels of the view, which may be `mirrored`.

        In evaluation the keypoints of every instance, in pixels of the image, and `instance_views`, the uint8 values of
        the instances' views of `size`, concatenated, channels first.
        """
        of_each = (self.num_keypoints, 3)
        if not evaluation:
            return {"keypoints": Field("float32", of_each), "mirrored": Field("bool")}
        return {
            "instance_keypoints": Field("float64", (None, *of_each)),
            "instance_boxes": Field("float64", (None, 4)),
            "instance_areas": Field("float64", (None,)),
            "instance_views": Field("uint8", (None,)),
            "keypoints_size": Field("int32", (2,)),
        }

    def decode(self, members: Mapping[str, Any], image: Size | None) -> Instances:
        """Raises DataError if the numbers of keypoints and names differ."""
        name = self.members[0]
        found = read_annotations(bytes(self.member(members, "keypoints")), name, image)
        rows, triples = [], []
        for row, one in enumerate(found.raw):
            if one.get("keypoints") is not None and not found.crowds[row]:
                rows.append(row)
                triples.append(as_triples(one["keypoints"], row))
        count = len(triples[0]) if triples and self.numbers is None else len(self.numbers or ())
        for row, points in zip(rows, triples, strict=True):
            if len(points) != count:
                raise DataError(
                    f"has {len(points)} keypoints in annotation {row}, but there should be {count}; name all "
                    "keypoints of the data set in `classes`, in their order"
                )
        every = self._of_stage(np.array(triples, np.float64).reshape(len(triples), count, 3))
        there = (every[:, :, 2] > 0).any(axis=1)
        kept = np.array(rows, np.int64)[there]
        return Instances(
            every[there, :, :2],
            every[there, :, 2].astype(np.int64),
            found.boxes[kept],
            found.areas[kept],
            int((~there).sum()),
            size=image or (0, 0),
        )

    def _of_stage(self, triples: np.ndarray) -> np.ndarray:
        """Map the data set's keypoints [n, k, 3] to those of the stage, in its order."""
        if self.numbers is None:
            return triples
        out = np.zeros((len(triples), self.num_keypoints, 3))
        known = [place for place, number in enumerate(self.numbers) if number >= 0]
        out[:, [self.numbers[place] for place in known]] = triples[:, known]
        return out

    def pick(self, value: Instances, rng: np.random.Generator) -> Instances:
        """Draw one of the instances."""
        if len(value.points) < 2:
            return value
        chosen = int(rng.integers(len(value.points)))
        return value.of(slice(chosen, chosen + 1))

    def frame(self, value: Instances, image: Size, size: Size, rng: np.random.Generator) -> Geometry:
        """A frame around the instance's box with random scale and rotation; around the whole image without one."""
        scale = PADDING * (1 + self.scale_jitter * (2 * rng.random() - 1))
        angle = self.rotation * (2 * rng.random() - 1)
        box = value.boxes[0] if len(value.boxes) else np.array([0, 0, image[1], image[0]], np.float64)
        return Geometry(image, size, frame_matrix(box, size, scale, angle))

    def cut(self, value: Instances, image: Size, size: Size, load: Callable[[Geometry], Pixels]) -> Instances:
        views = [load(Geometry(image, size, frame_matrix(box, size))).transpose(2, 0, 1) for box in value.boxes]
        return value._replace(views=np.array(views, np.uint8), size=image)

    def transform(self, value: Instances, geometry: Geometry) -> Instances:
        """Transform keypoints; those outside the output become unlabelled. Boxes and areas stay those of the source."""
        points = geometry.apply(value.points.reshape(-1, 2)).reshape(value.points.shape)
        inside = ((points >= 0) & (points < geometry.size[::-1])).all(axis=2)
        mirrored = value.mirrored ^ (np.linalg.det(geometry.matrix[:, :2]) < 0)
        flags = np.where(inside, value.flags, 0)
        return value._replace(points=points, flags=flags, mirrored=bool(mirrored), size=geometry.size)

    def pack(self, value: Instances, fields: Mapping[str, Any], row: int) -> None:
        triples = np.concatenate([value.points, value.flags[..., None]], axis=2)
        if "keypoints" in fields:
            fields["keypoints"][row] = triples[0] if len(triples) else 0
            fields["mirrored"][row] = value.mirrored
            return
        assert value.views is not None
        fields["instance_keypoints"][row], fields["instance_boxes"][row] = triples, value.boxes
        fields["instance_areas"][row], fields["instance_views"][row] = value.areas, value.views.reshape(-1)
        fields["keypoints_size"][row] = value.size

    def summarise(self, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> dict[str, int]:
        """Counts of instances with and without a labelled keypoint, and the number of keypoints of each."""
        if self.members[0] not in content:
            return super().summarise(sizes, content)
        found = self.decode(content, None)
        return {"instances": len(found.points), "left_out": found.left_out, "keypoints": found.points.shape[1]}

    @classmethod
    def known_classes(cls, summary: Mapping[str, int | None]) -> int | None:
        return summary["keypoints"]

    def count(self, value: Instances) -> Mapping[int, int]:
        """The number of instances with each keypoint labelled."""
        return Counter(np.nonzero(value.flags)[1].tolist())

    def draw(self, picture: Pixels, value: Instances, names: Sequence[str]) -> str:
        """Draw points in their own colours in place, hollow if hidden; returns the number of instances."""
        for points, flags in zip(value.points, value.flags, strict=True):
            draw_keypoints(picture, points, flags)
        left_out = f", {value.left_out} without keypoints" if value.left_out else ""
        return f"{len(value.points)} instances{left_out}"


def as_triples(found: Any, row: int) -> np.ndarray:
    """COCO's [x, y, v, x, y, v, ...] as float64 [k, 3]. Raises BadLabel if it is invalid."""
    if not isinstance(found, list) or not all(map(is_number, found)) or len(found) % 3:
        raise BadLabel(f"annotation {row} has keypoints that are not a list [x, y, v, x, y, v, ...] of numbers")
    triples = np.array(found, np.float64).reshape(-1, 3)
    if not np.isin(triples[:, 2], (0, HIDDEN, VISIBLE)).all():
        raise BadLabel(f"annotation {row} has a keypoint whose v is not 0, 1 or 2")
    return triples
