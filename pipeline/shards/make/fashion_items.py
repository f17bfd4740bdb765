"""Scenes of one item each, to pretrain on classes before whole scenes, and for zero-shot classification.

Members of a sample:
- `jpg`: RGB, 96 to 192 pixels per side, like `fashion-scenes`; each item is in the same split as there.
- `cls`: Fashion-MNIST's class.
- `txt`: a caption, such as "a red ankle boot".
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._fashion_mnist_files import IdxFolder
from pipeline.shards.make._scenes_captions import caption
from pipeline.shards.make._scenes_draw import Scene, draw_scene
from pipeline.shards.make._scenes_items import ItemPool, item_pool
from pipeline.shards.make._scenes_labels import sample_members
from pipeline.shards.make._scenes_shards import SPLITS, draw_shards
from pipeline.shards.make.fashion_mnist import CLASSES
from pipeline.shards.parallel import Workers

SIDES = 96, 192  # pixels, minimum and maximum


def item_members(src: Path, split: str, number: int, *, seed: int) -> dict[str, bytes]:
    """An image and its labels, determined by seed, split and number."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    scene = draw_item(item_pool(src, split), rng)
    members = sample_members(scene, caption(scene, rng))
    return {"jpg": members["jpg"], "cls": str(scene.items[0].label).encode(), "txt": members["txt"]}


def draw_item(pool: ItemPool, rng: np.random.Generator) -> Scene:
    """A scene of one item of the pool, of random size; `rng` determines everything."""
    height, width = rng.integers(SIDES[0], SIDES[1] + 1, 2).tolist()
    return draw_scene(pool, height, width, rng, count=1)


def make(
    out: Path,
    *,
    train: Annotated[int, "number of training images"] = 40_000,
    val: Annotated[int, "number of validation images, of items that are in no other split"] = 2_000,
    test: Annotated[int, "number of test images, of Fashion-MNIST's test items"] = 1_000,
    samples_per_shard: Annotated[int, "images per shard"] = 1_000,
    seed: Annotated[int, "seed for everything drawn at random"] = 0,
    src: IdxFolder = None,
    workers: Workers = None,
) -> DatasetIndex:
    """Scenes of one item of clothing each, with its class and a caption, as train-*.tar, val-*.tar and test-*.tar.

    Existing shards are kept. Raises DataError for invalid settings, without a source of Fashion-MNIST, or if `out` has
    other shards.
    """
    draw_shards(
        out,
        {"train": train, "val": val, "test": test},
        samples_per_shard,
        {"seed": seed},
        partial(item_members, seed=seed),
        noun="items",
        src=src,
        workers=workers,
    )
    return build_index(str(out), classes={"class_id": CLASSES}, workers=workers)
