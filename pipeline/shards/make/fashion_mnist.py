"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey 28x28 images of clothing in ten classes, as lossless PNG."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.build import write_index
from pipeline.shards.index import DatasetIndex, load_offsets, make_index
from pipeline.shards.index_file import load_index
from pipeline.shards.make._fashion_mnist_files import IdxFolder, Split, located, read_split
from pipeline.shards.make._png import as_png
from pipeline.shards.parallel import track
from pipeline.shards.scan import ShardRecord
from pipeline.shards.write import TarWriter, shard_name
from pipeline.targets import tool_targets

CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
MEMBERS = {"class_id": ("cls",)}
SAMPLES_PER_SHARD = 5_000


def make(
    out: Path,
    *,
    src: IdxFolder = None,
) -> DatasetIndex:
    """Fashion-MNIST as train-*.tar and test-*.tar: found on this machine, unpacked from Debian, or downloaded.

    Shards whose hash matches the index are kept; if all match, no source is needed.
    Raises DataError if no source is available, or if `src` does not have the data set.
    """
    valid = _valid_records(out)
    if valid and None not in valid.values():
        return load_index(str(out))
    records: list[ShardRecord] = []
    with located(src) as folder:
        for split in ("train", "test"):
            data = read_split(folder, split)
            check_fashion_mnist(data, folder, split)
            records += _write_split(out, split, data, valid)
    ordered = sorted(records, key=lambda record: record.name)
    index = make_index(str(out), ordered, {"class_id": CLASSES}, members=MEMBERS)
    write_index(index)
    return index


def _valid_records(out: Path) -> dict[str, ShardRecord | None]:
    """The shards of an index written by this maker, with None for damaged ones; empty without such an index."""
    try:
        index = load_index(str(out), check=False)
    except DataError:
        return {}
    if index.classes != {"class_id": CLASSES}:
        return {}
    records: dict[str, ShardRecord | None] = {}
    for record, shard in zip(index.records(), index.shards, strict=True):
        records[record.name] = None
        with contextlib.suppress(OSError, DataError):
            load_offsets(shard)
            with open(shard.url, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            records[record.name] = record if found == record.sha256 else None
    return records


def _write_split(out: Path, split: str, data: Split, valid: dict[str, ShardRecord | None]) -> Iterator[ShardRecord]:
    def write(first: int) -> ShardRecord:
        name = shard_name(split, first // SAMPLES_PER_SHARD)
        kept = valid.get(name)
        if kept is not None:
            return kept
        with TarWriter(out / name, targets=tool_targets(MEMBERS)) as tar:
            for i in range(first, min(first + SAMPLES_PER_SHARD, len(data.labels))):
                members = {"png": as_png(data.images[i]), "cls": str(data.labels[i]).encode()}
                tar.write(f"{split}-{i:05d}", members)
            return tar.finish()

    starts = range(0, len(data.labels), SAMPLES_PER_SHARD)
    return track(map(write, starts), len(starts), f"fashion-mnist {split}", "shards")


def check_fashion_mnist(data: Split, folder: Path, split: str) -> None:
    """Raises DataError if the files belong to another data set."""
    if data.images.shape != (len(data.labels), 28, 28) or np.any(data.labels >= len(CLASSES)):
        shapes = f"images {data.images.shape}, labels {data.labels.shape} up to {data.labels.max(initial=0)}"
        raise DataError(f"{folder}: the {split} files are not Fashion-MNIST ({shapes}); give its folder with --src")
