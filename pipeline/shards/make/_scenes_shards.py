"""Draws the shards of a synthetic data set, split by split; keeps existing ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import DataError
from pipeline.shards.make._fashion_mnist_files import located
from pipeline.shards.make._scenes_draw import GENERATOR
from pipeline.shards.parallel import map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import TarWriter, shard_name

SPLITS = ("train", "val", "test")  # their order is part of every picture's seed
ShardJob = tuple[str, int, int, int]  # split, number of the shard, its first picture, and the one after its last


@dataclass(frozen=True)
class SceneShardWriter:
    """Draws one shard; `draw_members` takes a split and the number of a picture in it."""

    out: Path
    draw_members: Callable[[str, int], Mapping[str, bytes]]

    def __call__(self, job: ShardJob) -> None:
        split, number, first, stop = job
        with TarWriter(self.out / shard_name(split, number)) as tar:
            for picture in range(first, stop):
                tar.write(f"{split}-{picture:08d}", self.draw_members(split, picture))
            tar.finish()


def draw_shards(
    out: Path,
    counts: Mapping[str, int],
    samples_per_shard: int,
    settings: Mapping[str, int],
    draw_members: Callable[[Path, str, int], Mapping[str, bytes]],
    *,
    noun: str,
    src: Path | None,
    workers: int | None,
) -> None:
    """Draws the missing shards of `counts` pictures per split.

    `settings` determine what the pictures show; `draw_members`, which must be picklable, takes the folder of
    Fashion-MNIST's files, a split and the number of a picture in it. Raises DataError for invalid counts, if no source
    is available, or if `out` holds other pictures.
    """
    seed = settings["seed"]
    if min(counts.values()) < 0 or not any(counts.values()) or samples_per_shard < 1 or seed < 0:
        found = ", ".join(f"{split} {count}" for split, count in counts.items())
        raise DataError(
            f"{found}, samples per shard {samples_per_shard}, seed {seed}: expected numbers from 0 up, at least one "
            f"of the {noun}, and at least one in a shard"
        )
    jobs: list[ShardJob] = []
    for split, count in counts.items():
        if count:
            plan = {noun: count, **settings, "samples-per-shard": samples_per_shard, "generator": GENERATOR}
            agree_on_plan(out, split, plan, elsewhere="--out")
        for number, first in enumerate(range(0, count, samples_per_shard)):
            jobs.append((split, number, first, min(first + samples_per_shard, count)))
    missing = [job for job in jobs if not (out / shard_name(*job[:2])).is_file()]
    if missing:
        with located(src) as folder:
            writer = SceneShardWriter(out, partial(draw_members, folder))
            for _ in map_shards(writer, missing, label=f"drawing {noun}", workers=workers):
                pass
    else:
        print(f"{out}: all {len(jobs):,} shards exist; nothing to draw", file=sys.stderr)
