"""Time to a loader's first batch when it starts at 1 % and at 99 % of an epoch."""

from __future__ import annotations

import statistics
import time
from typing import Any

from pipeline.bench.loader import BATCH_SIZE, CROP, train_loader
from pipeline.config.data import DataConfig
from pipeline.shards.index import DatasetIndex

DATA = DataConfig(train="bench", lanes=16, window=64, loader_workers=1, augment=CROP)
EARLY, LATE = 0.01, 0.99


def measure(index: DatasetIndex, image_size: int, rounds: int) -> dict[str, Any]:
    """Median seconds of each over alternating rounds."""
    first_batch_s(index, image_size, EARLY)  # starts the fork server, which the others then share
    found: dict[float, list[float]] = {EARLY: [], LATE: []}
    for _ in range(rounds):
        for share in found:
            found[share].append(first_batch_s(index, image_size, share))
    early, late = (statistics.median(found[share]) for share in (EARLY, LATE))
    return {"seconds_at_1_percent": early, "seconds_at_99_percent": late, "ratio": late / early}


def first_batch_s(index: DatasetIndex, image_size: int, share: float) -> float:
    """Seconds from the start of a loader, including its worker process, to its first batch."""
    steps = index.num_samples // DATA.lanes * DATA.lanes // BATCH_SIZE
    began = time.perf_counter()
    start_slot = int(steps * share) * BATCH_SIZE
    with train_loader(index, image_size, DATA, start_slot) as loader:
        next(loader)
        return time.perf_counter() - began
