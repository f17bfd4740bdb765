"""Writes shards from a list of a user's files: shuffled once, in parallel processes, resuming after interruptions.

A reader of a layout lists items, such as pairs of file names, and has a picklable callable that makes an item a
`NewSample` or raises `Rejected`. Its `make` calls `split_rows` for `--val`, `write_samples` for each part,
`check_taken`, `build_index` and `import_report`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import numpy as np

from pipeline.errors import DataError
from pipeline.images.decode import BadImage, Header, read_header
from pipeline.shards.make._files import Rejections, finished_shards, image_fault, sample_key
from pipeline.shards.parallel import map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import TarWriter, shard_name

T = TypeVar("T")

# Options that the makers of this kind share.
SamplesPerShard = Annotated[int, "images per shard"]
Prefix = Annotated[str, "shards are named PREFIX-000000.tar and so on; use a different prefix for each split"]

PREFIX = re.compile(r"[A-Za-z0-9_-]+")


class Rejected(Exception):
    """Why a file is left out."""

    def __init__(self, path: str, reason: str):
        super().__init__(reason)
        self.path = path


class NewSample(NamedTuple):
    """A sample to be written, from a user's files: a readable name, and bytes by extension."""

    name: str
    members: Mapping[str, bytes]


@dataclass(frozen=True)
class WriteOptions:
    """Settings that all makers of this kind share. Raises DataError for invalid ones."""

    prefix: str
    samples_per_shard: int
    seed: int
    val: str | None
    workers: int | None

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1 or not PREFIX.fullmatch(self.prefix):
            raise DataError(
                f"samples per shard {self.samples_per_shard} and prefix {self.prefix!r}: expected a positive number, "
                "and a prefix of letters, digits, '_' and '-'"
            )


@dataclass(frozen=True)
class SampleShardWriter(Generic[T]):
    """Writes one shard; returns the files that were left out, with the reason."""

    out: Path
    prefix: str
    read: Callable[[T], NewSample]  # raises Rejected; DataError for faults beyond a single bad file

    def __call__(self, job: tuple[int, int, list[T]]) -> list[tuple[str, str]]:
        number, first, items = job
        rejected = []
        with TarWriter(self.out / shard_name(self.prefix, number)) as tar:
            for position, item in enumerate(items, first):
                try:
                    sample = self.read(item)
                except Rejected as reason:
                    rejected.append((reason.path, str(reason)))
                    continue
                tar.write(sample_key(position, sample.name), sample.members)
            tar.finish()
        return rejected


def write_samples(
    out: Path,
    prefix: str,
    items: Sequence[T],
    read: Callable[[T], NewSample],
    plan: Mapping[str, Any],
    options: WriteOptions,
) -> Rejections:
    """Writes the missing shards of `PREFIX-*.tar`; returns what all of them left out.

    `read` runs on each item in a worker process. `plan` determines their content together with `options`.
    """
    settings = {"seed": options.seed, "samples_per_shard": options.samples_per_shard, "num_files": len(items), **plan}
    report = Rejections(out / f"{prefix}-rejected.txt", anew=agree_on_plan(out, prefix, settings))
    order = np.random.Generator(np.random.PCG64(options.seed)).permutation(len(items)).tolist()
    there, jobs = finished_shards(out), []
    for number, first in enumerate(range(0, len(items), options.samples_per_shard)):
        if shard_name(prefix, number) not in there:
            jobs.append((number, first, [items[row] for row in order[first : first + options.samples_per_shard]]))
    for rejected in map_shards(
        SampleShardWriter(out, prefix, read), jobs, label=f"writing {prefix}", workers=options.workers
    ):
        report.add(rejected)
    return report


def read_image(path: Path, name: str) -> tuple[bytes, Header]:
    """An image's bytes and header. Raises Rejected under `name`."""
    data = read_file(path, name)
    if fault := image_fault(data):
        raise Rejected(name, fault)
    try:
        return data, read_header(data)
    except BadImage as bad:
        raise Rejected(name, str(bad)) from None


def read_file(path: Path, name: str) -> bytes:
    """A file's bytes. Raises Rejected under `name`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Rejected(name, error.strerror or str(error)) from None


def check_annotated_size(name: str, annotated: tuple[int, int], found: tuple[int, int]) -> None:
    """Raises Rejected if the annotated (height, width) differs from that of the image; zeros mean unknown."""
    if all(annotated) and annotated != found:
        turned = "; annotations are for the image as its EXIF data rotate it" if annotated == found[::-1] else ""
        raise Rejected(
            name,
            f"the annotations are for {annotated[1]} x {annotated[0]} pixels, "
            f"but the image has {found[1]} x {found[0]}{turned}",
        )
