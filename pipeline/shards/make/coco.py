"""Shards of COCO's images and annotations: boxes, outlines, keypoints, captions, and class maps of stuff.

Members of a sample:
- the image, unchanged.
- `json`: width, height, image_id, file_name and COCO's annotations, each with the name of its category; only if the
  files contain more than captions.
- `txt`: the captions, one per line.
- `seg.png`: the class map of stuff, unchanged.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pipeline.config.class_names import visible
from pipeline.errors import DataError
from pipeline.images.class_map import decode_class_map, read_map_header
from pipeline.images.decode import BadImage
from pipeline.shards.build import build_index
from pipeline.shards.class_file import read_class_names
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._coco_files import read_coco
from pipeline.shards.make._coco_images import CocoItem, match_images
from pipeline.shards.make._files import digest_of, listing_hash, shortlist, write_names
from pipeline.shards.make._import_report import check_taken, import_report, refuse_other_classes
from pipeline.shards.make._mask_ids import Ids, ids_of
from pipeline.shards.make._samples import (
    NewSample,
    Prefix,
    Rejected,
    SamplesPerShard,
    WriteOptions,
    check_annotated_size,
    read_file,
    read_image,
    write_samples,
)
from pipeline.shards.make._val_split import Seed, Val, split_rows
from pipeline.shards.parallel import Workers
from pipeline.targets.base import BadLabel
from pipeline.targets.mask import check_size


@dataclass(frozen=True)
class CocoReader:
    """Reads the sample of an item."""

    images: Path
    stuff: Path | None
    ids: Ids | None

    def __call__(self, item: CocoItem) -> NewSample:
        data, header = read_image(self.images / item.path, item.path)
        check_annotated_size(item.path, (item.height, item.width), (header.height, header.width))
        members = {Path(item.path).suffix.lower()[1:]: data}
        if item.described:
            size = {"width": header.width, "height": header.height}
            members["json"] = json.dumps(size | json.loads(item.described), separators=(",", ":")).encode()
        if item.captions:
            members["txt"] = item.captions.encode()
        if item.stuff is not None:
            members["seg.png"] = self._map(item.stuff, (header.height, header.width))
        return NewSample(item.path, members)

    def _map(self, path: str, size: tuple[int, int]) -> bytes:
        """A class map of stuff. Raises Rejected, and DataError for ids without a class."""
        assert self.stuff is not None
        assert self.ids is not None
        data = read_file(self.stuff / path, path)
        try:
            check_size(read_map_header(data).size, size)
            outside = self.ids.outside(decode_class_map(data))
        except (BadImage, BadLabel) as bad:
            raise Rejected(path, str(bad)) from None
        if outside:
            raise DataError(
                f"{self.stuff / visible(path)}: found the id {shortlist(list(map(str, outside)))}, but --stuff-classes "
                f"names {self.ids.num_classes}, 0 to {self.ids.num_classes - 1}; name all classes"
            )
        return data


def make(
    out: Path,
    *,
    images: Annotated[Path, "folder of images"],
    annotations: Annotated[
        tuple[Path, ...], "annotation file: instances, person_keypoints or captions; repeat for several"
    ],
    stuff: Annotated[Path | None, "folder of PNGs of the same size as the images, whose values are class ids"] = None,
    stuff_classes: Annotated[
        str | None, "class names of --stuff from id 0 up: a file with one name per line, or a,b,c"
    ] = None,
    val: Val = None,
    most_missing: Annotated[float, "maximum share of the annotated images that may be missing"] = 0.1,
    samples_per_shard: SamplesPerShard = 1_000,
    prefix: Prefix = "train",
    seed: Seed = 0,
    workers: Workers = None,
) -> DatasetIndex:
    """Shards of images and their COCO annotations, merged from all annotation files.

    Images, class maps and category ids stay unchanged; `classes.txt` lists the category names in the order of their
    ids. Skipped images are reported with the reason, and bad files listed in `PREFIX-rejected.txt`. An interrupted call
    resumes. Raises DataError for files that contradict each other, unknown categories, too many missing images, or if
    `out` has shards with the same prefix from other files or with other settings.
    """
    options = WriteOptions(prefix, samples_per_shard, seed, val, workers)
    if (stuff is None) != (stuff_classes is None):
        raise DataError("--stuff and --stuff-classes: give both, class maps and the names of their classes")
    coco = read_coco(annotations)
    maps = [] if stuff_classes is None else read_class_names(stuff_classes)
    named = {"boxes": coco.classes, "keypoints": coco.keypoints, "mask": maps}
    classes = {kind: names for kind, names in named.items() if names}
    for kind, names in classes.items():
        refuse_other_classes(out, kind, names, "--stuff-classes" if kind == "mask" else "--annotations")
    items, left_out = match_images(coco, images, stuff, out, most_missing)
    read = CocoReader(images, stuff, ids_of(len(maps), None, None) if maps else None)
    source, reports = digest_of(path.read_bytes() for path in annotations), []
    for name, rows in split_rows([item.path for item in items], options).items():
        chosen = [items[row] for row in rows]
        plan = {"listing_sha256": listing_hash([*((item.path, item.size) for item in chosen), (source, len(chosen))])}
        reports.append(write_samples(out, name, chosen, read, plan | {"stuff_classes": maps}, options))
    taken = check_taken(images, len(items), reports)
    if coco.classes:
        write_names(out / "classes.txt", coco.classes)
    described = {kind: ("json",) for kind in classes if kind != "mask"}
    index = build_index(str(out), classes=classes, targets=described, workers=workers)
    empty = sum(item.empty for item in items) if coco.classes else 0
    more = f", {empty:,} of them without annotations" if empty else ""
    print(import_report(f"{images}: {taken:,} images imported{more}", left_out, reports), file=sys.stderr)
    return index
