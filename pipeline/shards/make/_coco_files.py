"""Merges COCO annotation files: images by file name, annotations by id."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.class_names import normalise_class_name
from pipeline.errors import DataError
from pipeline.targets._coco import is_number, short
from pipeline.targets.base import BadLabel
from pipeline.targets.keypoints import as_triples

REQUIRED = {"images": ("id", "file_name"), "annotations": ("image_id",), "categories": ("id", "name")}


class Form(NamedTuple):
    """What a field must be, unless it is missing."""

    fits: Callable[[Any], bool]
    words: str


ID = Form(lambda value: isinstance(value, (int, str)), "a number or text")
WHOLE = Form(lambda value: isinstance(value, int), "a whole number")
NUMBER, LIST = Form(is_number, "a number"), Form(lambda value: isinstance(value, list), "a list")
FIELDS = {
    "images": {"id": ID, "width": NUMBER, "height": NUMBER},
    "annotations": {"id": ID, "image_id": ID, "category_id": WHOLE},
    "categories": {"id": WHOLE, "keypoints": LIST},
}


@dataclass
class CocoImage:
    """An image's entries from all files; sides in pixels, 0 if no file gives them."""

    file_name: str
    image_id: int
    width: int
    height: int
    annotations: list[dict[str, Any]] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


@dataclass
class Coco:
    images: dict[str, CocoImage] = field(default_factory=dict)  # by file_name
    categories: dict[int, str] = field(default_factory=dict)
    points: dict[int, tuple[str, ...]] = field(default_factory=dict)  # names of keypoints by category id
    left_out: dict[str, list[str]] = field(default_factory=dict)  # skipped annotations (file and position) by reason

    @property
    def classes(self) -> list[str]:
        """The names of the categories, in the order of their ids."""
        return [self.categories[number] for number in sorted(self.categories)]

    @property
    def keypoints(self) -> list[str]:
        """The names of keypoints, if all categories that have any have the same."""
        named = set(self.points.values())
        return list(next(iter(named))) if len(named) == 1 else []


def read_coco(paths: Sequence[Path]) -> Coco:
    """Merges the files. Raises DataError for a file that is not in COCO's format or contradicts another."""
    merged = Coco()
    origin: dict[str, Path] = {}  # file that gave the size of each image
    named: dict[int, Path] = {}  # by category id
    for path in paths:
        content = _content(path)
        _add_categories(merged, named, path, content.get("categories") or [])
        by_id = _add_images(merged, origin, path, content["images"])
        _add_annotations(merged, path, content["annotations"], by_id)
    return merged


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"--annotations {path}: cannot be read ({error.strerror}); correct the path") from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"--annotations {path}: not valid JSON ({error}); give a file such as instances_train.json"
        ) from None
    for entry, fields in REQUIRED.items():
        rows = content.get(entry) if isinstance(content, dict) else None
        if rows is None and entry == "categories":  # files of captions have none
            continue
        if not isinstance(rows, list):
            raise DataError(
                f"--annotations {path}: has no list {entry!r}; give a COCO file such as instances_train.json"
            )
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or any(name not in row for name in fields):
                raise DataError(
                    f"--annotations {path}: {entry}[{number}] has no {' and '.join(fields)}; write them as COCO does"
                )
            for name, form in FIELDS[entry].items():
                if row.get(name) is not None and not form.fits(row[name]):
                    raise DataError(
                        f"--annotations {path}: {entry}[{number}] has the {name} {short(row[name])}, not {form.words}; "
                        "write it as COCO does"
                    )
    return content


def _add_categories(merged: Coco, named: dict[int, Path], path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        number, name = row["id"], normalise_class_name(str(row["name"]))
        if points := row.get("keypoints"):
            merged.points[number] = tuple(normalise_class_name(str(point)) for point in points)
        known = merged.categories.setdefault(number, name)
        where = named.setdefault(number, path)
        if known != name:
            raise DataError(
                f"--annotations {path}: its category {number} is {name!r}, but {known!r} in {where}; give each "
                "category one name and id"
            )
        twice = next((other for other, one in merged.categories.items() if one == name and other != number), None)
        if twice is not None:
            raise DataError(
                f"--annotations {path}: the category {name!r} has the id {number}, but {twice} in {named[twice]}; "
                "give each category one name and id"
            )


def _add_images(
    merged: Coco, origin: dict[str, Path], path: Path, rows: Iterable[Mapping[str, Any]]
) -> dict[int, CocoImage]:
    """Adds a file's images; returns them by its own ids. Raises DataError if sizes contradict another file's."""
    by_id: dict[int, CocoImage] = {}
    for row in rows:
        name, size = str(row["file_name"]), (int(row.get("width") or 0), int(row.get("height") or 0))
        image = merged.images.setdefault(name, CocoImage(name, row["id"], *size))
        where = origin.setdefault(name, path)
        if all(size) and (image.width, image.height) != size:
            if image.width and image.height:
                raise DataError(
                    f"--annotations {path}: {name} has {size[0]} x {size[1]} pixels, but {image.width} x "
                    f"{image.height} in {where}; use files of the same images, or correct one"
                )
            image.width, image.height = size
            origin[name] = path
        if by_id.setdefault(row["id"], image) is not image:
            raise DataError(
                f"--annotations {path}: {by_id[row['id']].file_name} and {name} share the id {row['id']}; give each "
                "image its own id"
            )
    return by_id


def _add_annotations(
    merged: Coco, path: Path, rows: Sequence[Mapping[str, Any]], by_id: Mapping[int, CocoImage]
) -> None:
    """Adds boxes and captions to their images; merges new fields into annotations that are already there."""
    there = {(image.file_name, one["id"]): one for image in by_id.values() for one in image.annotations if "id" in one}
    for number, row in enumerate(rows):
        image = by_id.get(row["image_id"])
        if image is None:
            _leave_out(merged, "annotations for images that their file does not list", path, number)
        elif "caption" in row:
            _add_caption(merged, image, row["caption"], path, number)
        elif (fault := _fault(row, image)) is not None:
            _leave_out(merged, fault, path, number)
        else:
            known = there.get((image.file_name, row.get("id")))
            if known is not None and all(known.get(key) == row.get(key) for key in ("category_id", "bbox")):
                known.update(_described(merged, row, path, number))
            else:
                image.annotations.append(_described(merged, row, path, number))


def _add_caption(merged: Coco, image: CocoImage, caption: Any, path: Path, number: int) -> None:
    text = " ".join(caption.split()) if isinstance(caption, str) else ""
    if text:
        image.captions.append(text)
    else:
        _leave_out(merged, "empty captions", path, number)


def _described(merged: Coco, row: Mapping[str, Any], path: Path, number: int) -> dict[str, Any]:
    """An annotation as stored in shards: with its category's name. Raises DataError for an unknown category."""
    category = row.get("category_id")
    if category not in merged.categories:
        known = ", ".join(map(str, sorted(merged.categories)[:5])) or "none"
        raise DataError(
            f"--annotations {path}: annotations[{number}] has the category id {category}, which is not among its "
            f"categories ({known}{', ...' if len(merged.categories) > 5 else ''}); add it there"
        )
    kept = {key: value for key, value in row.items() if key != "image_id"}
    if (fault := _keypoint_fault(row.get("keypoints"), merged.points.get(category))) is not None:
        kept = {key: value for key, value in kept.items() if key not in ("keypoints", "num_keypoints")}
        _leave_out(merged, f"keypoints {fault} (their boxes are imported)", path, number)
    return {"category_id": category, "category": merged.categories[category], **kept}


def _keypoint_fault(found: Any, names: tuple[str, ...] | None) -> str | None:
    """Why an annotation's keypoints cannot be trained on; `names` are those of its category, if it lists any."""
    if found is None:
        return None
    try:
        count = len(as_triples(found, 0))
    except BadLabel:
        return "that are not [x, y, v, ...] with v 0, 1 or 2"
    return None if names is None or count == len(names) else "of another number than their category lists"


def _fault(row: Mapping[str, Any], image: CocoImage) -> str | None:
    """Why an annotation has no box that can be trained on."""
    box = row.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return "annotations without a bbox of four numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "annotations whose bbox has no area"
    if image.width and image.height and not (x < image.width and y < image.height and x + width > 0 and y + height > 0):
        return "annotations whose bbox is outside the image"
    for name in ("area", "iscrowd"):
        if not is_number(value := row.get(name, 0)) or value < 0:
            return f"annotations whose {name} is not a number from 0 up"
    return None


def _leave_out(merged: Coco, why: str, path: Path, number: int) -> None:
    merged.left_out.setdefault(why, []).append(f"{path.name} annotations[{number}]")
