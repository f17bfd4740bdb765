"""Two pictures of each of many items, to measure whether a model recognises an item that it has never seen.

The pictures of an item differ in its colour, size, place, rotation and perhaps direction, and in the wall behind it.

Members of a sample:
- `jpg`: RGB, 96 to 192 pixels per side, of one of Fashion-MNIST's test items, as in `fashion-items`.
- `cls`: the item's number; two samples have it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.build import build_index
from pipeline.shards.index import DatasetIndex
from pipeline.shards.make._fashion_mnist_files import IdxFolder
from pipeline.shards.make._scenes_items import ItemPool, item_pool
from pipeline.shards.make._scenes_labels import sample_members
from pipeline.shards.make._scenes_shards import SPLITS, draw_shards
from pipeline.shards.make.fashion_items import draw_item
from pipeline.shards.parallel import Workers

VIEWS = 2  # pictures of an item


def pair_members(src: Path, split: str, number: int, *, items: int, seed: int) -> dict[str, bytes]:
    """A picture of item `number // VIEWS` and that number, determined by seed, split and number.

    Raises DataError if the data set has fewer than `items` items.
    """
    pool = item_pool(src, split)
    if items > len(pool.labels):
        raise DataError(f"--items {items}: {split} has {len(pool.labels):,} items; ask for at most so many")
    item = number // VIEWS
    row = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(pool.labels))[item]
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    scene = draw_item(ItemPool(pool.images[[row]], pool.labels[[row]]), rng)
    return {"jpg": sample_members(scene, "")["jpg"], "cls": str(item).encode()}


def make(
    out: Path,
    *,
    items: Annotated[int, "number of items, with two pictures each"] = 1_000,
    samples_per_shard: Annotated[int, "pictures per shard"] = 1_000,
    seed: Annotated[int, "seed for everything drawn at random"] = 0,
    src: IdxFolder = None,
    workers: Workers = None,
) -> DatasetIndex:
    """Two pictures of each of many items of clothing, labelled with the item's number, as test-*.tar.

    Existing shards are kept. Raises DataError for invalid settings, without a source of Fashion-MNIST, for more items
    than it has, or if `out` has other shards.
    """
    draw_shards(
        out,
        {"test": VIEWS * items},
        samples_per_shard,
        {"seed": seed},
        partial(pair_members, items=items, seed=seed),
        noun="pictures",
        src=src,
        workers=workers,
    )
    return build_index(str(out), workers=workers)
