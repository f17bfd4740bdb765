"""Shards of images and their captions, from a table or from text files next to the images (img2dataset)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._captions_table import read_captions
from pipeline.shards.make._files import digest_of, listing_hash, stem
from pipeline.shards.make._folder_tree import Image, read_tree
from pipeline.shards.make._import_report import check_taken, import_report, refuse_missing
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
from pipeline.targets.text import Text

MEMBER = "txt"


class CaptionedImage(NamedTuple):
    """An image to include; its captions, one per line, or None if they are in a file next to it."""

    path: str
    size: int  # bytes
    captions: str | None
    described: bool = False  # has a JSON file next to it


@dataclass(frozen=True)
class CaptionsReader:
    """Reads the sample of an item."""

    images: Path

    def __call__(self, item: CaptionedImage) -> NewSample:
        data, _ = read_image(self.images / item.path, item.path)
        members = {Path(item.path).suffix.lower()[1:]: data}
        if item.captions is not None:
            members[MEMBER] = item.captions.encode()
            return NewSample(item.path, members)
        beside = stem(item.path)
        members[MEMBER] = read_file(self.images / f"{beside}.txt", item.path)
        try:
            Text((MEMBER,)).decode(members, None)
        except BadLabel as bad:
            raise Rejected(item.path, str(bad)) from None
        if item.described:
            members["json"] = read_file(self.images / f"{beside}.json", item.path)
        return NewSample(item.path, members)


def make(
    out: Path,
    *,
    images: Annotated[
        Path, "folder of images; without --table, each with a text file next to it, as img2dataset writes them"
    ],
    table: Annotated[Path | None, "CSV, TSV or JSONL file that lists images below --images and their captions"] = None,
    image_column: Annotated[str, "column of --table with the images' paths, with or without suffix"] = "image",
    caption_column: Annotated[str, "column of --table with the captions"] = "caption",
    val: Val = None,
    most_missing: Annotated[float, "maximum share of the images in --table that may be missing"] = 0.1,
    samples_per_shard: SamplesPerShard = 1_000,
    prefix: Prefix = "train",
    seed: Seed = 0,
    workers: Workers = None,
) -> DatasetIndex:
    """Shards of images and captions.

    The member `txt` has one caption per line; a JSON file next to an image becomes the member `json`. Several rows of
    a table with the same image are several captions. Images and texts stay unchanged. Skipped images are reported with
    the reason, and bad files listed in `PREFIX-rejected.txt`. An interrupted call resumes. Raises DataError
    for a table without these columns or not in UTF-8, for too many missing images, or if `out` has shards with the same
    prefix from other files or with other settings.
    """
    options = WriteOptions(prefix, samples_per_shard, seed, val, workers)
    if table is None:
        items, left_out = beside_images(images, out)
        source = "none"
    else:
        items, left_out = of_table(images, table, image_column, caption_column, out, most_missing)
        source = digest_of([table.read_bytes()])
    reports = []
    for name, rows in split_rows([item.path for item in items], options).items():
        chosen = [items[row] for row in rows]
        listing = listing_hash([*((item.path, item.size) for item in chosen), (source, len(chosen))])
        plan = {"listing_sha256": listing, "image_column": image_column, "caption_column": caption_column}
        reports.append(write_samples(out, name, chosen, CaptionsReader(images), plan, options))
    taken = check_taken(images, len(items), reports)
    index = build_index(str(out), workers=workers)
    print(import_report(f"{images}: {taken:,} images with captions imported", left_out, reports), file=sys.stderr)
    return index


def of_table(
    images: Path, table: Path, image_column: str, caption_column: str, out: Path, most_missing: float
) -> tuple[list[CaptionedImage], dict[str, list[str]]]:
    """The images in a table, in its order, and what is left out. Raises DataError."""
    captions, empty = read_captions(table, image_column, caption_column)
    tree = read_tree(images, out, "--images is a folder of images")
    by_name: dict[str, list[Image]] = {}
    for file in tree.all_images():
        for spelling in {file.path, stem(file.path)}:
            by_name.setdefault(spelling, []).append(file)
    found, missing, several = dict[str, CaptionedImage](), list[str](), list[str]()
    for name, lines in captions.items():
        files = by_name.get(name.removeprefix("./"), [])
        if len(files) != 1:
            (several if files else missing).append(name)
            continue
        path, size = files[0]
        known = found.get(path)
        found[path] = CaptionedImage(path, size, "\n".join([*((known.captions or "",) if known else ()), *lines]))
    refuse_missing(images, missing, len(captions), most_missing, f"that {table} lists")
    left_out = {
        "rows without image or caption": empty,
        "images that do not exist": missing,
        "names without suffix that several images share": several,
        "images that the table does not list": [f.path for f in tree.all_images() if f.path not in found],
    }
    return list(found.values()), left_out


def beside_images(images: Path, out: Path) -> tuple[list[CaptionedImage], dict[str, list[str]]]:
    """Images with a text file next to them, in the order of their paths, and those without. Raises DataError."""
    tree = read_tree(images, out, "--images is a folder of images")
    files = sorted(tree.all_images())
    if not files and tree.others[".tar"]:
        raise DataError(f"{images}: found tars, which already are shards; run `minivit shards index {images}`")
    found, without = [], []
    for file in files:
        text = images / f"{stem(file.path)}.txt"
        if text.is_file():
            size = file.size + text.stat().st_size
            found.append(CaptionedImage(file.path, size, None, (images / f"{stem(file.path)}.json").is_file()))
        else:
            without.append(file.path)
    if not found:
        raise DataError(
            f"{images}: none of its {len(files):,} images has a text file of the same name next to it (x.txt for "
            "x.jpg); add them, or give --table"
        )
    return found, {"images without a text file next to them": without}
