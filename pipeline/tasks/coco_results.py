"""COCO's results format: a list with one entry per box, as pycocotools' `loadRes` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from pipeline.config.class_names import normalise_class_name
from pipeline.errors import DataError, ModelError
from pipeline.shards.pictures import FoundImage


@dataclass(frozen=True)
class CocoIds:
    """Ids of images by file name without suffix, and of categories by name.

    Without ids, images are numbered from 1 in their order, and categories use the class number.
    """

    images: Mapping[str, int] = field(default_factory=dict)
    categories: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> CocoIds:
        """Read the ids from an annotation file. Raises DataError if it is unreadable or no COCO annotation file."""
        try:
            content = json.loads(path.read_bytes())
            images = {PurePath(image["file_name"]).stem: int(image["id"]) for image in content["images"]}
            return cls(images, {normalise_class_name(one["name"]): int(one["id"]) for one in content["categories"]})
        except OSError as error:
            raise DataError(f"--coco-ids {path}: cannot be read ({error.strerror}); correct the path") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"--coco-ids {path}: not a COCO annotation file ({type(error).__name__}: {error}); give one with "
                "`images` and `categories`"
            ) from None


class CocoResults:
    """Collects boxes image by image."""

    def __init__(self, ids: CocoIds):
        self.ids, self.rows = ids, list[dict[str, Any]]()
        self._images: dict[int, str] = {}  # id -> name

    def add(self, found: FoundImage, record: Mapping[str, Any]) -> None:
        """Add the boxes, and keypoints if any, of an image's record.

        Raises ModelError for a record without boxes, and DataError if an id is missing or belongs to another image.
        """
        if "boxes" not in record:
            raise ModelError("--coco: the model's task predicts no boxes; leave --coco out, or use a detector")
        image = self._image_id(found)
        points, scores = record.get("keypoints"), record.get("scores")
        classes, labels = record.get("classes"), record.get("labels")
        for row, (x0, y0, x1, y1) in enumerate(record["boxes"]):
            found_points = [] if points is None else points[row]
            mean = sum(point[2] for point in found_points) / max(len(found_points), 1)
            self.rows.append(
                {
                    "image_id": image,
                    "category_id": self._category_id(labels[row] if labels else None, classes[row] if classes else 1),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": scores[row] if scores else mean,
                }
                | ({} if points is None else {"keypoints": [value for point in found_points for value in point]})
            )

    def _image_id(self, found: FoundImage) -> int:
        """The id in the sample's JSON, or else the id for the file name."""
        said = {}
        if "json" in found.members:
            try:
                said = json.loads(bytes(found.members["json"]))
            except ValueError:
                said = {}
        number = said.get("image_id") if isinstance(said, dict) else None
        if not isinstance(number, int):
            stem = PurePath(found.below).stem
            if self.ids.images and stem not in self.ids.images:
                raise DataError(
                    f"--coco-ids: found no image {stem!r}, which {found.name} needs; give the file that lists it"
                )
            number = self.ids.images.get(stem, len(self._images) + 1)
        if (other := self._images.setdefault(number, found.name)) != found.name:
            raise DataError(
                f"--coco: {other} and {found.name} both have the image id {number}; predict them one by one"
            )
        return number

    def _category_id(self, label: str | None, number: int) -> int:
        if not self.ids.categories or label is None:
            return number
        if label not in self.ids.categories:
            raise DataError(
                f"--coco-ids: found no category {label!r}, which the model predicts; give the file that lists it"
            )
        return self.ids.categories[label]
