from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.shards.make._fashion_mnist_files import read_split
from pipeline.shards.make._scenes_items import cut_item_out, item_mask, item_points, item_pool


def mast() -> np.ndarray:
    """A block with a thin mast upon its left half."""
    image = np.zeros((28, 28), np.uint8)
    image[16:26, 4:24] = 200
    image[2:16, 8:10] = 120
    return image


def test_pinholes_are_closed_and_holes_and_bays_stay_open() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 4:24] = 200
    image[8:10, 8:10] = 0  # a pinhole
    image[14:20, 14:20] = 3  # a hole, not quite black
    image[4:7, 12] = 0  # a bay
    mask = item_mask(image)
    assert mask[8:10, 8:10].all()
    assert not mask[14:20, 14:20].any()
    assert not mask[4:7, 12].any()
    assert mask.sum() == 400 - 36 - 3


def test_points_are_the_middles_of_the_outer_fifths() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:8, 3:6] = True
    mask[4, 1:9] = True
    assert item_points(mask)[:4].tolist() == [[4, 2.5], [4, 6.5], [1.5, 4], [7.5, 4]]
    mirrored = item_points(mask[:, ::-1])
    assert np.allclose(mirrored[:, 0], 9 - item_points(mask)[[0, 1, 3, 2, 4], 0])


def test_points_hardly_move_if_one_leg_becomes_the_longer_one() -> None:
    mask = np.zeros((28, 28), bool)
    mask[2:10, 6:20] = mask[10:24, 6:10] = mask[10:24, 16:20] = True
    left, right = mask.copy(), mask.copy()
    left[24, 6:10] = right[24, 16:20] = True
    assert np.abs(item_points(left) - item_points(right)).max() < 1.5


@given(st.integers(0, 29), st.floats(14, 130), st.floats(-180, 180))
def test_the_outline_is_cropped_and_the_points_lie_on_the_silhouette(pool, number, side, degrees) -> None:
    cutout = cut_item_out(pool.images[number], side, degrees)
    silhouette = cutout.silhouette
    assert cutout.alpha.shape == cutout.shade.shape
    assert all(edge.any() for edge in (cutout.alpha[0], cutout.alpha[-1], cutout.alpha[:, 0], cutout.alpha[:, -1]))
    assert silhouette[cutout.points[:, 1], cutout.points[:, 0]].all()
    expected = item_mask(pool.images[number]).sum() * (side / 28) ** 2
    assert silhouette.sum() == pytest.approx(expected, rel=0.12, abs=12)


def test_upright_at_its_own_size_an_item_is_itself(pool) -> None:
    for image in pool.images:
        mask = item_mask(image)
        rows, columns = np.nonzero(mask)
        silhouette = np.zeros((40, 40), bool)
        cropped = cut_item_out(image, 28, 0).silhouette
        silhouette[: cropped.shape[0], : cropped.shape[1]] = cropped
        found = np.argwhere(silhouette)
        offset = np.rint(np.array([rows.mean(), columns.mean()]) - found.mean(axis=0)).astype(int)
        both = sum(mask[tuple(pixel)] for pixel in (found + offset).clip(0, 27))
        assert both > 0.9 * max(mask.sum(), silhouette.sum())


def test_points_turn_with_the_item() -> None:
    upright, clockwise, counter = (cut_item_out(mast(), 56, degrees) for degrees in (0, 30, -30))
    lean = [one.points[0, 0] - one.points[1, 0] for one in (upright, clockwise, counter)]
    assert lean[1] > lean[0] + 10 > lean[2] + 20
    mirrored = cut_item_out(mast()[:, ::-1], 56, 0)
    assert mirrored.points[0, 0] > mirrored.points[4, 0]
    assert upright.points[0, 0] < upright.points[4, 0]


def test_cloth_keeps_its_light_and_dark() -> None:
    cutout = cut_item_out(mast(), 84, 0)
    x, y = cutout.points[0]
    assert cutout.shade[y + 10, x] < cutout.shade[cutout.points[1, 1] - 10, cutout.points[1, 0]]
    assert 0.6 <= cutout.shade.min() < cutout.shade.max() <= 1


def test_no_item_is_in_two_splits(items_src: Path) -> None:
    pools = {split: item_pool(items_src, split) for split in ("train", "val", "test")}
    assert {split: len(one.labels) for split, one in pools.items()} == {"train": 33, "val": 3, "test": 12}
    data = read_split(items_src, "train")
    np.testing.assert_array_equal(np.concatenate([pools["train"].images, pools["val"].images]), data.images)
    np.testing.assert_array_equal(pools["val"].labels, data.labels[-3:])
    np.testing.assert_array_equal(pools["test"].images, read_split(items_src, "test").images)


def test_files_without_items(write_idx: Callable[[Path, np.ndarray], None], tmp_path: Path) -> None:
    images = np.zeros((24, 28, 28), np.uint8)
    cv2.circle(images[0], (14, 14), 9, 255, -1)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.zeros(24, np.uint8))
    assert len(item_pool(tmp_path, "train").labels) == 1
    with pytest.raises(DataError, match="train files have no items for val"):
        item_pool(tmp_path, "val")
