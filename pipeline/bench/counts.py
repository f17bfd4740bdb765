"""Time and memory to index very many shards by counts, and then to read the first samples."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench.processes import peak_bytes
from pipeline.shards import store, urls
from pipeline.shards.index_check import INDEX_NAME

SAMPLES_PER_SHARD, BATCH = 16, 256
LINKS = 10_000  # to one file; file systems limit them


def measure(shards: int, url: str | None, rounds: int) -> dict[str, Any]:
    """Medians over fresh processes, for the shards at `url` or for this many, written to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        if url is None:
            write_folder(Path(folder), shards)
        found = [_run(url or folder, str(number)) for number in range(rounds)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]} | {"rounds": found}


def write_folder(folder: Path, shards: int) -> None:
    """Shards of SAMPLES_PER_SHARD images with img2dataset's counts; links to few files, so that they cost no space."""
    from pipeline.shards.write import TarWriter

    for number in range(shards):
        tar, stats = folder / f"{number:06d}.tar", folder / f"{number:06d}_stats.json"
        if number % LINKS == 0:
            first = tar, stats
            writer = TarWriter(tar)
            for sample in range(SAMPLES_PER_SHARD):
                writer.write(f"{sample:09d}", {"jpg": os.urandom(2000), "txt": b"a caption"})
            writer.finish()
            stats.write_text(json.dumps({"count": 2 * SAMPLES_PER_SHARD, "successes": SAMPLES_PER_SHARD}))
        else:
            os.link(first[0], tar)
            os.link(first[1], stats)


def _run(url: str, seed: str) -> dict[str, float]:
    command = [sys.executable, "-m", "pipeline.bench.counts", url, seed]
    done = [
        json.loads(subprocess.run([*command, task.__name__], capture_output=True, text=True, check=True).stdout)
        for task in (index, first_batch)
    ]
    return {name: value for one in done for name, value in one.items()}


def index(url: str, seed: int) -> dict[str, float]:
    """Index by counts, without an earlier index."""
    from pipeline.shards.counted import index_by_counts

    place = urls.join(url, INDEX_NAME)
    if INDEX_NAME in store.list_sizes(url, [INDEX_NAME]):
        fs, path = urls.filesystem(place)
        fs.rm(path)
    spent, made = _timed(lambda: index_by_counts(url))
    size = store.file_size(place)
    return {"shards": len(made.names), "samples": made.num_samples, "index_megabytes": size / 1e6} | {
        f"index_{name}": value for name, value in spent.items()
    }


def first_batch(url: str, seed: int) -> dict[str, float]:
    """Load the index, compare it with the folder, and read the first BATCH samples of a shuffled epoch."""
    from pipeline.shards.index_file import load_index
    from pipeline.stream.order import Order
    from pipeline.stream.read import SampleReader

    loading, loaded = _timed(lambda: load_index(url))

    def read() -> None:
        order = Order(loaded.counts, lanes=16, window=BATCH, seed=seed)
        raw = SampleReader(loaded).read(*order.samples(np.arange(BATCH)))
        assert all("jpg" in raw.members(number)[1] for number in range(BATCH))

    reading, _ = _timed(read)
    return {f"load_{name}": value for name, value in loading.items()} | {
        f"first_batch_{name}": value for name, value in reading.items()
    }


def _timed(function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    began, cpu = time.perf_counter(), time.process_time()
    result = function()
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return spent | {"peak_megabytes": peak_bytes() / 1e6}, result


if __name__ == "__main__":
    _, place, number, task = sys.argv
    print(json.dumps({"index": index, "first_batch": first_batch}[task](place, int(number))))
