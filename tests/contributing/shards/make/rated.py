"""Shards of a folder of images and a table of their ratings."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._files import digest_of
from pipeline.shards.make._import_report import check_taken, import_report
from pipeline.shards.make._samples import NewSample, WriteOptions, read_image, write_samples
from pipeline.shards.parallel import Workers


@dataclass(frozen=True)
class RatingReader:
    """Reads the sample of a row: an image's name and its rating."""

    images: Path

    def __call__(self, row: tuple[str, str]) -> NewSample:
        name, rating = row
        image, _ = read_image(self.images / name, name)
        return NewSample(name, {Path(name).suffix.lower()[1:]: image, "rating": rating.encode()})


def make(
    out: Path,
    *,
    images: Annotated[Path, "folder of images"],
    table: Annotated[Path, "CSV without header: an image's name, and its rating"],
    prefix: Annotated[str, "shards are PREFIX-000000.tar, ..."] = "train",
    samples_per_shard: Annotated[int, "images per shard"] = 1_000,
    seed: Annotated[int, "seed for spreading images over shards"] = 0,
    workers: Workers = None,
) -> DatasetIndex:
    """Shards of a folder of images and a table of their ratings.

    Bad files are listed in `PREFIX-rejected.txt`. An interrupted run resumes. Raises DataError if no image can be used.
    """
    with table.open(newline="") as file:
        rows = [(name, rating) for name, rating in csv.reader(file)]
    options, plan = (
        WriteOptions(prefix, samples_per_shard, seed, None, workers),
        {"table": digest_of([table.read_bytes()])},
    )
    report = write_samples(out, prefix, rows, RatingReader(images), plan, options)
    taken = check_taken(images, len(rows), [report])
    index = build_index(str(out), workers=workers)
    print(import_report(f"{images}: {taken:,} images imported", {}, [report]), file=sys.stderr)
    return index
