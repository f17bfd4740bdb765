"""Synthetic scenes with exact labels for dense tasks: Fashion-MNIST items, tinted, rotated and scaled, before a wall.

Members of a sample:
- `jpg`: RGB, by default 96 to 192 pixels per side.
- `seg.png`: class map, 8 bits: 0 for the wall, 1 to 10 for Fashion-MNIST's classes; `classes.txt` names them, one per
  line, and `groups.txt` has the group of each on the same line: top, trousers, dress, footwear or bag.
- `depth.png`: 16 bits, millimetres; 0 would mean not measured and does not occur.
- `json`: width, height, caption, and COCO's annotations: boxes, areas and run lengths of visible parts; five keypoints,
  the means of the item's top, bottom, left and right fifths and its centre, which rotate with it; colour; depth in
  millimetres.
- `txt`: the caption, such as "a red ankle boot left of a black dress".
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
from pipeline.shards.make._files import write_names
from pipeline.shards.make._scenes_captions import caption
from pipeline.shards.make._scenes_draw import draw_scene
from pipeline.shards.make._scenes_items import item_pool
from pipeline.shards.make._scenes_labels import sample_members
from pipeline.shards.make._scenes_shards import SPLITS, draw_shards
from pipeline.shards.make.fashion_mnist import CLASSES
from pipeline.shards.parallel import Workers

BACKGROUND = "background"
GROUPS = ("top", "trousers", "top", "dress", "top", "footwear", "top", "footwear", "bag", "footwear")  # of CLASSES
KEYPOINTS = "top", "bottom", "left", "right", "centre"  # of an item, in the order of its annotations
LEAST_SIDE = 64  # in smaller scenes, the farthest items would be only a few pixels wide


def scene_members(src: Path, split: str, number: int, *, min_side: int, max_side: int, seed: int) -> dict[str, bytes]:
    """A scene and its labels, determined by seed, split and number alone."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    height, width = rng.integers(min_side, max_side + 1, 2).tolist()
    scene = draw_scene(item_pool(src, split), height, width, rng)
    return sample_members(scene, caption(scene, rng))


def make(
    out: Path,
    *,
    train: Annotated[int, "number of training scenes"] = 20_000,
    val: Annotated[int, "number of validation scenes, of items that are in no other split"] = 2_000,
    test: Annotated[int, "number of test scenes, of Fashion-MNIST's test items"] = 2_000,
    min_side: Annotated[int, "minimum height and width of the scenes, in pixels"] = 96,
    max_side: Annotated[int, "maximum height and width of the scenes, in pixels"] = 192,
    samples_per_shard: Annotated[int, "scenes per shard"] = 1_000,
    seed: Annotated[int, "seed for everything drawn at random"] = 0,
    src: IdxFolder = None,
    workers: Workers = None,
) -> DatasetIndex:
    """Scenes of clothing for dense tasks as train-*.tar, val-*.tar and test-*.tar.

    Each scene has a class map, a depth map, COCO boxes, keypoints and run-length masks, and a caption. Existing shards
    are kept: the same call resumes where it stopped, and needs no source if nothing is missing.
    Raises DataError for invalid settings, if no source is available, or if `out` has other shards.
    """
    if not LEAST_SIDE <= min_side <= max_side:
        raise DataError(
            f"min side {min_side}, max side {max_side}: expected at least {LEAST_SIDE} pixels, and max at least min"
        )
    draw_shards(
        out,
        {"train": train, "val": val, "test": test},
        samples_per_shard,
        {"min-side": min_side, "max-side": max_side, "seed": seed},
        partial(scene_members, min_side=min_side, max_side=max_side, seed=seed),
        noun="scenes",
        src=src,
        workers=workers,
    )
    write_names(out / "classes.txt", [BACKGROUND, *CLASSES])
    write_names(out / "groups.txt", [BACKGROUND, *GROUPS])
    named = {**{kind: [BACKGROUND, *CLASSES] for kind in ("mask", "boxes")}, "keypoints": list(KEYPOINTS)}
    told = {"boxes": ("json",), "keypoints": ("json",)}
    return build_index(str(out), classes=named, targets=told, workers=workers)
