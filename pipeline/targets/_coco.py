"""COCO annotations of one image, parsed from a JSON member into arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.targets.base import BadLabel

if TYPE_CHECKING:  # an index needs no image libraries
    from pipeline.images.geometry import Size


class Annotations(NamedTuple):
    """The n annotations of an image, in order; `raw` has all fields of each, such as its keypoints."""

    boxes: np.ndarray  # float64 [n, 4]: left, top, right, bottom in pixels, within the image
    categories: np.ndarray  # int64 [n], as in the file; -1 if there is none
    names: list[str | None]  # of the categories, if the file contains them
    areas: np.ndarray  # float64 [n], square pixels: of the segmentation, or else of the box
    crowds: np.ndarray  # bool [n]: whether it is a group of objects that are not separated
    raw: list[Mapping[str, Any]]


def read_annotations(data: bytes, member: str, image: Size | None) -> Annotations:
    """The annotations {"bbox": [x, y, width, height], "category_id", "area", "iscrowd"} of a member.

    The JSON is {"width", "height", "annotations": [...]}, where only "annotations" is required, or just the list. Boxes
    that extend beyond the image, as some do in COCO, are clipped. `image` is the size of the image if it is known;
    otherwise the size in the JSON is used.

    Raises:
        BadLabel: the JSON is invalid, the sizes differ, or a box is inverted, empty or outside the image.
    """
    listed, size = _listed(data, member, image)
    boxes = np.array([_box(one, number) for number, one in enumerate(listed)], np.float64).reshape(-1, 4)
    if size is not None:
        boxes = _within(boxes, size)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = [_number(one, "area", number, float(sides[number].prod())) for number, one in enumerate(listed)]
    return Annotations(
        boxes,
        np.array([_category(one, number) for number, one in enumerate(listed)], np.int64),
        [name if isinstance(name := one.get("category"), str) else None for one in listed],
        np.array(areas, np.float64),
        np.array([bool(_number(one, "iscrowd", number, 0)) for number, one in enumerate(listed)], bool),
        listed,
    )


def _listed(data: bytes, member: str, image: Size | None) -> tuple[list[Mapping[str, Any]], Size | None]:
    """The annotations as in the JSON, and the size of the image."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise BadLabel(f"the member {member} is not valid JSON") from None
    listed = found.get("annotations") if isinstance(found, dict) else found
    if not isinstance(listed, list):
        names = ", ".join(map(str, found)) if isinstance(found, dict) else "no fields"
        raise BadLabel(f"the member {member} has no list 'annotations' (found {names[:200]})")
    for number, one in enumerate(listed):
        if not isinstance(one, dict):
            raise BadLabel(f"annotation {number} is {short(one)}, not an object with a bbox")
    sides = (found.get("height"), found.get("width")) if isinstance(found, dict) else (None, None)
    if not all(isinstance(side, int) and side > 0 for side in sides):
        return listed, image
    if image is not None and sides != image:
        (height, width), (full, across) = sides, image
        turned = "; boxes are for the image as its EXIF data rotate it" if sides == image[::-1] else ""
        raise BadLabel(
            f"the annotations are for {width} x {height} pixels, but their image has {across} x {full}{turned}"
        )
    return listed, sides  # type: ignore[return-value]  # both are numbers here


def _box(one: Mapping[str, Any], number: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom. Raises BadLabel if the bbox is invalid."""
    box = one.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise BadLabel(f"annotation {number} has the bbox {short(box)}, not four numbers [x, y, width, height]")
    x, y, width, height = map(float, box)
    if width < 0 or height < 0:
        raise BadLabel(f"annotation {number} has the inverted bbox {short(box)}; width and height must be above 0")
    if not width or not height:
        raise BadLabel(f"annotation {number} has the bbox {short(box)}, which has no area")
    return x, y, x + width, y + height


def _within(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Boxes [n, 4] clipped to the image. Raises BadLabel if nothing remains of a box."""
    height, width = size
    cut = boxes.clip(0, [width, height, width, height])
    gone = np.flatnonzero((cut[:, 2:] <= cut[:, :2]).any(axis=1))
    if len(gone):
        left, top, right, bottom = boxes[gone[0]].tolist()
        raise BadLabel(
            f"annotation {gone[0]} has a box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}), outside its image of "
            f"{width} x {height} pixels"
        )
    return cut


def _category(one: Mapping[str, Any], number: int) -> int:
    """The category id, -1 if there is none. Raises BadLabel if it is not an integer."""
    found = one.get("category_id", -1)
    if not isinstance(found, int) or isinstance(found, bool) or abs(found) >= 1 << 62:
        raise BadLabel(f"annotation {number} has the category_id {short(found)}, not a whole number")
    return found


def _number(one: Mapping[str, Any], name: str, number: int, default: float) -> float:
    """The value of an annotation's field. Raises BadLabel if it is not a non-negative number."""
    found = one.get(name, default)
    if not is_number(found) or found < 0:
        raise BadLabel(f"annotation {number} has the {name} {short(found)}, not a number from 0 up")
    return float(found)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float holds."""
    return isinstance(value, (int, float)) and abs(value) < 1e300 and math.isfinite(value)


def short(value: Any) -> str:
    """A JSON value for a message, truncated."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
