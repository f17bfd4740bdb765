"""Draws the shards of a synthetic data set, split by split; keeps existing ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import DataError
from pipeline.shards.make._fashion_mnist_files import located
from pipeline.shards.make._scenes_draw import GENERATOR
from pipeline.shards.parallel import map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import shard_name

SPLITS = ("train", "val", "test")  # their order is part of every picture's seed
Job = tuple[str, int, int, int]  # split, number of the shard, its first picture, and the one after its last


def draw_shards(
    out: Path,
    counts: Mapping[str, int],
    samples_per_shard: int,
    settings: Mapping[str, int],
    task: Callable[[Path], Callable[[Job], None]],
    *,
    noun: str,
    src: Path | None,
    workers: int | None,
) -> None:
    """Draws the missing shards of `counts` pictures per split.

    `settings` determine what the pictures show; `task` takes the folder of Fashion-MNIST's files and returns what draws
    a shard. Raises DataError for invalid counts, if no source is available, or if `out` holds other pictures.
    """
    seed = settings["seed"]
    if min(counts.values()) < 0 or not any(counts.values()) or samples_per_shard < 1 or seed < 0:
        found = ", ".join(f"{split} {count}" for split, count in counts.items())
        raise DataError(
            f"{found}, samples per shard {samples_per_shard}, seed {seed}: expected numbers from 0 up, at least one "
            f"of the {noun}, and at least one in a shard"
        )
    jobs: list[Job] = []
    for split, count in counts.items():
        if count:
            plan = {noun: count, **settings, "samples-per-shard": samples_per_shard, "generator": GENERATOR}
            agree_on_plan(out, split, plan, elsewhere="--out")
        for number, first in enumerate(range(0, count, samples_per_shard)):
            jobs.append((split, number, first, min(first + samples_per_shard, count)))
    missing = [job for job in jobs if not (out / shard_name(*job[:2])).is_file()]
    if missing:
        with located(src) as folder:
            for _ in map_shards(task(folder), missing, label=f"drawing {noun}", workers=workers):
                pass
    else:
        print(f"{out}: all {len(jobs):,} shards exist; nothing to draw", file=sys.stderr)
