from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.shards.make._scenes_items import ItemPool


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture(scope="session")
def write_idx() -> Callable[[Path, np.ndarray], None]:
    """Write an array of bytes as Fashion-MNIST's files hold it."""
    return _write_idx


def _items(count: int, seed: int) -> np.ndarray:
    """Bright polygons on black, some with a hole, uint8 [count, 28, 28]."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 28, 28), np.uint8)
    for i, image in enumerate(images):
        angles = 2 * np.pi / 7 * (np.arange(7) + rng.uniform(0, 0.8, 7))
        radii = rng.uniform(7, 14, 7)
        corners = np.stack([14 + radii * np.cos(angles), 14 + radii * np.sin(angles)], axis=1)
        hull = cv2.convexHull(corners.astype(np.int32))
        cv2.fillPoly(image, [hull], 255)
        image[:] = np.where(image, rng.integers(60, 256, image.shape), 0)
        if i % 3 == 0:
            cv2.circle(image, (14, 14), 3, 0, -1)
    return images


@pytest.fixture(scope="session")
def pool() -> ItemPool:
    """Thirty made-up items of all ten classes."""
    return ItemPool(_items(30, 0), np.arange(30, dtype=np.uint8) % 10)


@pytest.fixture(scope="session")
def items_src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up items in Fashion-MNIST's files: 36 to train on, the last three of them held out, and 12 to test on."""
    folder = tmp_path_factory.mktemp("items")
    for prefix, count, seed in (("train", 36, 1), ("t10k", 12, 2)):
        _write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", _items(count, seed))
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return folder
