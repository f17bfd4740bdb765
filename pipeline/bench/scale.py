"""Time and memory for one rank of a very large job to find its first sample, including loading the index."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from pipeline.bench.processes import peak_bytes
from pipeline.shards.index import make_index
from pipeline.shards.index_file import load_index
from pipeline.shards.scan import ShardRecord
from pipeline.stream.order import Order, share_of_step

SHARDS, SAMPLES_PER_SHARD, BYTES_PER_SHARD = 200_000, 10_000, 1_100_000_000
RANKS, WORKERS, WINDOW = 4_096, 8, 512
LANES = RANKS * WORKERS
SUMMARY = {"missing": 0, "bad": 0, "unusable": 0, "low": 0, "high": 999}


def measure(rounds: int) -> dict[str, Any]:
    """Median seconds from opening the index to knowing the first samples, and peak memory, in fresh processes."""
    from pipeline.shards.build import write_index

    with tempfile.TemporaryDirectory() as folder:
        records = [
            ShardRecord(
                f"train-{number:06d}.tar",
                SAMPLES_PER_SHARD,
                BYTES_PER_SHARD,
                hashlib.sha256(str(number).encode()).hexdigest(),
                targets={"class_id": SUMMARY},
            )
            for number in range(SHARDS)
        ]
        classes = {"class_id": [str(label) for label in range(1000)]}
        write_index(make_index(folder, records, classes, members={"class_id": ("cls",)}))
        command = [sys.executable, "-m", "pipeline.bench.scale", folder]
        found = [
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(rounds)
        ]
    return {
        "shards": SHARDS,
        "samples": SHARDS * SAMPLES_PER_SHARD,
        "ranks": RANKS,
        "loader_workers": WORKERS,
        "seconds": statistics.median(one["seconds"] for one in found),
        "peak_megabytes": max(one["peak_megabytes"] for one in found),
        "rounds": found,
    }


def find_first(folder: str) -> dict[str, Any]:
    """Run the first work of the last rank's last loader worker when it resumes in the middle of the fourth epoch."""
    began = time.perf_counter()
    index = load_index(folder, check=False)
    order = Order(index.counts, lanes=LANES, window=WINDOW, seed=0)
    first_slot = 7 * order.epoch_slots // 2
    slots = share_of_step(
        first_slot, LANES, LANES, rank=RANKS - 1, world_size=RANKS, worker=WORKERS - 1, workers=WORKERS
    )
    shards, samples = order.samples(slots)
    seconds = time.perf_counter() - began
    first = [index.names[int(shards[0])], int(samples[0])]
    assert np.all(samples < index.counts[shards])
    return {"seconds": seconds, "peak_megabytes": peak_bytes() / 1e6, "first": first}


if __name__ == "__main__":
    print(json.dumps(find_first(sys.argv[1])))
