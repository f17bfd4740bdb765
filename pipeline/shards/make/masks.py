"""Shards of a user's own images and class maps, as in VOC, ADE20K or Cityscapes; each pair of files is a sample."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2

from pipeline.config.class_names import visible
from pipeline.errors import DataError
from pipeline.images.class_map import decode_class_map, read_map_header
from pipeline.images.decode import BadImage
from pipeline.shards.build import build_index
from pipeline.shards.class_file import read_class_names
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._files import listing_hash, shortlist
from pipeline.shards.make._folder_tree import read_tree
from pipeline.shards.make._import_report import check_taken, import_report, refuse_other_classes
from pipeline.shards.make._mask_ids import Ids, ids_of, remap_text
from pipeline.shards.make._mask_pairs import MaskPair, pair_up
from pipeline.shards.make._samples import (
    NewSample,
    Prefix,
    Rejected,
    SamplesPerShard,
    WriteOptions,
    read_file,
    read_image,
    write_samples,
)
from pipeline.shards.make._val_split import Seed, Val, split_rows
from pipeline.shards.parallel import Workers
from pipeline.targets.base import BadLabel
from pipeline.targets.mask import check_size

MEMBER = "seg.png"
# For class maps, unfiltered rows compress as well as filtered ones, and decode fastest.
PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]


@dataclass(frozen=True)
class MasksReader:
    """Reads the sample of a pair. Raises DataError for ids without a class."""

    images: Path
    masks: Path
    ids: Ids

    def __call__(self, pair: MaskPair) -> NewSample:
        image, header = read_image(self.images / pair.image, pair.image)
        mask = read_file(self.masks / pair.mask, pair.mask)
        try:
            check_size(read_map_header(mask).size, (header.height, header.width))
            ids = decode_class_map(mask)
        except (BadImage, BadLabel) as bad:
            raise Rejected(pair.mask, str(bad)) from None
        if outside := self.ids.outside(ids):
            raise self.without_class(pair.mask, outside)
        if (stored := self.ids.stored(ids)) is not None:
            mask = cv2.imencode(".png", stored, PNG_OPTIONS)[1].tobytes()
        return NewSample(pair.image, {Path(pair.image).suffix.lower()[1:]: image, MEMBER: mask})

    def without_class(self, path: str, outside: list[int]) -> DataError:
        count = self.ids.num_classes
        return DataError(
            f"{self.masks / visible(path)}: found the id {shortlist(list(map(str, outside)))}, but --classes names "
            f"{count}, 0 to {count - 1}; name all classes, or keep only those with --remap 0-{count - 1}=0"
        )


def make(
    out: Path,
    *,
    images: Annotated[Path, "folder of images, with or without subfolders"],
    masks: Annotated[
        Path, "folder of PNGs of the same size as the images, whose palette indices or grey values are class ids"
    ],
    classes: Annotated[str, "class names from id 0 up: a file with one name per line, or a,b,c"],
    ignore: Annotated[
        int | None, "id of pixels without a class; default: 255, or 65535 for more than 255 classes"
    ] = None,
    remap: Annotated[
        str | None,
        "new ids: OLD=NEW,FIRST-LAST=NEW,OLD=ignore, or a file of these; ids that are not listed are ignored",
    ] = None,
    image_suffix: Annotated[
        str | None, "end of the images' names, after the part that they share with the masks"
    ] = None,
    mask_suffix: Annotated[str, "end of the masks' names, such as _gtFine_labelIds.png"] = ".png",
    only: Annotated[
        Path | None, "text file that lists the pairs to import, one per line, such as VOC's train.txt"
    ] = None,
    val: Val = None,
    samples_per_shard: SamplesPerShard = 1_000,
    prefix: Prefix = "train",
    seed: Seed = 0,
    workers: Workers = None,
) -> DatasetIndex:
    """Shards of images and class maps from two folders with the same file names.

    Images stay unchanged, and so do masks that keep their ids; otherwise ignored pixels become 255, or 65535 for more
    than 255 classes. Skipped files are reported with the reason; unreadable files and masks of the wrong size are
    listed in `PREFIX-rejected.txt`. An interrupted call resumes. Raises DataError if no mask matches an image, if a
    mask has ids without a class, or if `out` has shards with the same prefix from other files or with other settings.
    """
    options = WriteOptions(prefix, samples_per_shard, seed, val, workers)
    names = read_class_names(classes)
    refuse_other_classes(out, "mask", names)
    remap = remap_text(remap)
    ids = ids_of(len(names), ignore, remap)
    found = read_tree(images, out, "--images is a folder of images").all_images()
    pngs = read_tree(masks, out, "--masks is a folder of PNGs").all_images()
    pairing = pair_up(found, pngs, (image_suffix, mask_suffix), only)
    pairs, reports = pairing.pairs, []
    for name, rows in split_rows([pair.image for pair in pairs], options).items():
        chosen = [pairs[row] for row in rows]
        files = [(f"{pair.image}\0{pair.mask}", pair.size) for pair in chosen]
        plan = {"listing_sha256": listing_hash(files), "ignore": ignore, "remap": remap, "small_ids": ids.ignore == 255}
        reports.append(write_samples(out, name, chosen, MasksReader(images, masks, ids), plan, options))
    taken = check_taken(images, len(pairs), reports)
    index = build_index(str(out), classes={"mask": names}, workers=workers)
    print(import_report(f"{images}: {taken:,} images with masks imported", pairing.left_out, reports), file=sys.stderr)
    if ids.ignore != 255:
        print(f"ignored pixels hold {ids.ignore}: set `ignore: {ids.ignore}` for the data set's mask", file=sys.stderr)
    return index
