"""Peak memory of a loader worker, on a data set and on one with ten times the shards."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.bench.loader import CROP, train_loader
from pipeline.bench.processes import peak_bytes, tree
from pipeline.config.data import DataConfig
from pipeline.shards.build import write_index
from pipeline.shards.index import DatasetIndex, make_index
from pipeline.shards.sidecar import SUFFIX

FACTOR = 10
DATA = DataConfig(train="bench", lanes=32, window=32, loader_workers=1, augment=CROP)


def measure(index: DatasetIndex, image_size: int, batches: int) -> dict[str, Any]:
    """Peak memory of the worker after `batches` batches of each; the larger set is the same tars under more names."""
    with tempfile.TemporaryDirectory(dir=index.url) as folder:
        larger = repeat_shards(index, Path(folder), FACTOR)
        small, large = (peak_of_worker(data, image_size, batches) for data in (index, larger))
    return {
        "shards": [len(index.names), len(larger.names)],
        "peak_megabytes": [small / 1e6, large / 1e6],
        "ratio": large / small,
    }


def repeat_shards(index: DatasetIndex, folder: Path, times: int) -> DatasetIndex:
    """A data set with `times` times the shards, each a hard link to an existing one."""
    records = []
    for record in index.records():
        for number in range(times):
            name = f"{record.name.removesuffix('.tar')}-{number:03d}.tar"
            for suffix in ("", SUFFIX):
                os.link(Path(index.url, record.name + suffix), folder / (name + suffix))
            records.append(replace(record, name=name))
    ordered = sorted(records, key=lambda record: record.name)
    larger = make_index(str(folder), ordered, index.classes, index.keys, index.members)
    write_index(larger)
    return larger


def peak_of_worker(index: DatasetIndex, image_size: int, batches: int) -> int:
    """Peak memory of the loader's only worker over `batches` batches."""
    before = set(tree())
    with train_loader(index, image_size, DATA) as loader:
        for _ in range(batches):
            next(loader)
        return max(peak_bytes(pid) for pid in set(tree()) - before)
