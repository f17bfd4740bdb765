"""Shards of images and boxes in YOLO's layout: images/, labels/ and a data.yaml."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._files import digest_of, listing_hash, write_names
from pipeline.shards.make._import_report import check_taken, import_report, refuse_other_classes
from pipeline.shards.make._samples import NewSample, Rejected, SamplesPerShard, WriteOptions, read_image, write_samples
from pipeline.shards.make._val_split import Seed, split_rows
from pipeline.shards.make._yolo_tree import YoloItem, labels_of, read_yolo
from pipeline.shards.parallel import Workers
from pipeline.targets.base import BadLabel
from pipeline.targets.boxes import yolo_line

DIGITS = 3  # decimal places of pixel coordinates


@dataclass(frozen=True)
class YoloReader:
    """Reads the sample of an item. Raises DataError for a class without a name."""

    classes: tuple[str, ...]

    def __call__(self, item: YoloItem) -> NewSample:
        data, header = read_image(Path(item.path), item.name)
        annotations = []
        for number, line in enumerate(self.lines(item), 1):
            if line.strip():
                annotations.append(self.annotation(item, line, number, header.width, header.height))
        described = {"width": header.width, "height": header.height, "annotations": annotations}
        told = json.dumps(described, separators=(",", ":")).encode()
        return NewSample(item.name, {Path(item.path).suffix.lower()[1:]: data, "json": told})

    def lines(self, item: YoloItem) -> list[str]:
        try:
            return (item.lines or b"").decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise Rejected(item.name, "its label file is not text") from None

    def annotation(self, item: YoloItem, line: str, number: int, width: int, height: int) -> dict[str, object]:
        """A line as a COCO annotation, in pixels and clipped at the image's border."""
        try:
            label, x, y, across, down = yolo_line(line, number)
        except BadLabel as bad:
            raise Rejected(item.name, f"in its label file, {bad}") from None
        if not 0 <= label < len(self.classes):
            raise DataError(
                f"{labels_of(item.path)}: line {number} has the class {int(label)}, but {len(self.classes)} classes "
                f"are named, 0 to {len(self.classes) - 1}; name all classes, or correct the line"
            )
        left, right = (max((x - across / 2) * width, 0), min((x + across / 2) * width, width))
        top, bottom = (max((y - down / 2) * height, 0), min((y + down / 2) * height, height))
        box = [round(value, DIGITS) for value in (left, top, right - left, bottom - top)]
        if not all(box[2:]):
            raise Rejected(item.name, f"in its label file, line {number} has a box thinner than {10**-DIGITS} pixels")
        return {
            "category_id": int(label),
            "category": self.classes[int(label)],
            "bbox": box,
            "area": round(box[2] * box[3], DIGITS),
            "iscrowd": 0,
        }


def make(
    out: Path,
    *,
    src: Annotated[Path, "a data.yaml, or a folder with a data.yaml or with images/ and labels/"],
    classes: Annotated[
        str | None, "class names from 0 up: a file with one name per line, or a,b,c; default: the data.yaml's"
    ] = None,
    val: Annotated[
        str | None, "if there is only one split, images for val-*.tar: a share such as 0.05, or a file that lists them"
    ] = None,
    samples_per_shard: SamplesPerShard = 1_000,
    prefix: Annotated[
        str, "prefix of the shards if there are no splits; otherwise shards are named after their split"
    ] = "train",
    seed: Seed = 0,
    workers: Workers = None,
) -> DatasetIndex:
    """Shards of images and YOLO boxes, which become COCO annotations in pixels, in the member `json`.

    The boxes of images/X.jpg are in labels/X.txt: `class x y width height`, relative to the image size. Images without
    such a file get no boxes. Images stay unchanged; `classes.txt` lists the class names. Images with invalid label
    files are listed in `PREFIX-rejected.txt`. An interrupted call resumes. Raises DataError for classes without
    a name, or if `out` has shards with the same prefix from other files or with other settings.
    """
    options = WriteOptions(prefix, samples_per_shard, seed, val, workers)
    found = read_yolo(src, classes, prefix, out)
    if val is not None and len(found.splits) > 1:
        raise DataError(f"--val {val}: {src} already has the splits {', '.join(found.splits)}; leave it out")
    refuse_other_classes(out, "boxes", found.classes)
    items = [item for part in found.splits.values() for item in part]
    parts = found.splits
    if val is not None:
        by_split = split_rows([item.name for item in items], options)
        parts = {name: [items[row] for row in rows] for name, rows in by_split.items()}
    read, reports = YoloReader(tuple(found.classes)), []
    for name, part in parts.items():
        labels = digest_of(item.lines or b"" for item in part)
        listing = listing_hash([*((item.name, item.size) for item in part), (labels, len(part))])
        plan = {"listing_sha256": listing, "classes": found.classes}
        reports.append(write_samples(out, name, part, read, plan, options))
    taken = check_taken(src, len(items), reports)
    write_names(out / "classes.txt", found.classes)
    index = build_index(str(out), classes={"boxes": found.classes}, targets={"boxes": ("json",)}, workers=workers)
    print(import_report(f"{src}: {taken:,} images imported", found.left_out, reports), file=sys.stderr)
    return index
