"""Scenes of one item each, of Fashion-MNIST's test items: what models of images and texts can be asked to name.

Members of a sample:
- `jpg`: RGB, as those of `fashion-scenes`, whose test scenes are made of the same items.
- `cls`: Fashion-MNIST's class.
- `txt`: a caption, such as "a red ankle boot".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._fashion_mnist_files import located
from pipeline.shards.make._scenes_captions import caption
from pipeline.shards.make._scenes_draw import Scene, draw_scene
from pipeline.shards.make._scenes_items import item_pool
from pipeline.shards.make._scenes_labels import sample_members
from pipeline.shards.make.fashion_mnist import CLASSES
from pipeline.shards.parallel import map_shards
from pipeline.shards.plan import agree_on_plan
from pipeline.shards.write import TarWriter, shard_name

SPLIT = "test"
SIDES = 96, 192  # pixels, shortest and longest
SAMPLES_PER_SHARD = 500


@dataclass(frozen=True)
class ShardTask:
    """Draw one shard."""

    src: Path
    out: Path
    seed: int

    def __call__(self, job: tuple[int, int, int]) -> None:
        number, first, stop = job
        with TarWriter(self.out / shard_name(SPLIT, number)) as tar:
            for index in range(first, stop):
                scene, rng = self.scene(index)
                members = sample_members(scene, caption(scene, rng))
                label = str(scene.items[0].label).encode()
                tar.write(f"{SPLIT}-{index:08d}", {"jpg": members["jpg"], "cls": label, "txt": members["txt"]})
            tar.finish()

    def scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        """The first of its scenes that holds a single item: a function of seed and number alone."""
        for attempt in count():
            rng = np.random.default_rng([self.seed, index, attempt])
            height, width = rng.integers(SIDES[0], SIDES[1] + 1, 2).tolist()
            scene = draw_scene(item_pool(self.src, SPLIT), height, width, rng)
            if len(scene.items) == 1:
                break
        return scene, rng


def make(
    out: Path,
    *,
    samples: Annotated[int, "pictures"] = 1_000,
    seed: Annotated[int, "key of everything drawn"] = 0,
    src: Annotated[
        Path | None, "folder with Fashion-MNIST's four idx files; default: Debian's package, else the public copy"
    ] = None,
    workers: Annotated[int | None, "processes; default: one per CPU"] = None,
) -> DatasetIndex:
    """Scenes of one item of clothing each, with its class and a caption, as test-*.tar.

    Shards that are there stay. Raises DataError for impossible settings, when no source can be had, or if `out` holds
    others.
    """
    if samples < 1 or seed < 0:
        raise DataError(f"samples {samples}, seed {seed}: take at least one sample, and a seed from 0 up")
    agree_on_plan(out, SPLIT, {"samples": samples, "seed": seed}, elsewhere="--out")
    starts = range(0, samples, SAMPLES_PER_SHARD)
    jobs = [(number, first, min(first + SAMPLES_PER_SHARD, samples)) for number, first in enumerate(starts)]
    missing = [job for job in jobs if not (out / shard_name(SPLIT, job[0])).is_file()]
    if missing:
        with located(src) as folder:
            for _ in map_shards(ShardTask(folder, out, seed), missing, label="drawing items", workers=workers):
                pass
    return build_index(str(out), classes={"class_id": CLASSES}, workers=workers)
