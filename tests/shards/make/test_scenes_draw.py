from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.make._scenes_canvas import NEAREST_MM
from pipeline.shards.make._scenes_draw import COLOURS, MIN_VISIBLE, Scene, SceneItem, draw_scene, light
from pipeline.shards.make._scenes_items import SHADE, ItemPool

PAD = 200


def whole(item: SceneItem, scene: Scene) -> np.ndarray:
    """The silhouette where it lies in the picture, by way of a wide margin."""
    height, width = scene.owner.shape
    wide = np.zeros((height + 2 * PAD, width + 2 * PAD), bool)
    rows, columns = item.silhouette.shape
    wide[PAD + item.top : PAD + item.top + rows, PAD + item.left : PAD + item.left + columns] = item.silhouette
    return wide[PAD:-PAD, PAD:-PAD]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), height=st.integers(64, 160), width=st.integers(64, 160))
def test_the_nearest_is_seen_and_depth_says_so(pool: ItemPool, seed: int, height: int, width: int) -> None:
    scene = draw_scene(pool, height, width, np.random.default_rng(seed))
    assert scene.image.shape == (height, width, 3)
    depths = [item.depth_mm for item in scene.items]
    assert depths == sorted(set(depths), reverse=True)
    expected = np.zeros((height, width), int)
    for number, item in enumerate(scene.items, 1):
        expected[whole(item, scene)] = number
    np.testing.assert_array_equal(scene.owner, expected)
    assert scene.depth_mm.dtype == np.uint16
    np.testing.assert_array_equal(np.array([0, *depths])[scene.owner], np.where(scene.owner, scene.depth_mm, 0))
    wall = scene.depth_mm[scene.owner == 0]
    assert wall.min() >= NEAREST_MM > max(depths, default=0)
    for number, item in enumerate(scene.items, 1):
        assert (scene.owner == number).sum() > MIN_VISIBLE * item.silhouette.sum()
        columns, rows = (item.points - (item.left, item.top)).T
        assert item.silhouette[rows, columns].all()


def test_items_shrink_with_distance() -> None:
    disc = np.zeros((28, 28), np.uint8)
    cv2.circle(disc, (14, 14), 12, 255, -1)
    pool = ItemPool(disc[None], np.zeros(1, np.uint8))
    scenes = [draw_scene(pool, 120, 120, np.random.default_rng(seed)) for seed in range(20)]
    products = [item.depth_mm * np.sqrt(item.silhouette.sum()) for scene in scenes for item in scene.items]
    assert len(products) > 20
    assert max(products) < 1.1 * min(products)


def test_items_have_the_colours_that_they_are_said_to_have(pool: ItemPool) -> None:
    for seed in range(20):
        scene = draw_scene(pool, 128, 128, np.random.default_rng(seed))
        for number, item in enumerate(scene.items, 1):
            inner = cv2.erode((scene.owner == number).astype(np.uint8), np.ones((3, 3)), borderValue=0).astype(bool)
            if inner.any():
                shade = scene.image[inner].mean(axis=0) / 255 / light(item.depth_mm)
                colour = np.array(COLOURS[item.colour])
                assert (shade > SHADE[0] * (colour - 0.05)).all()
                assert (shade < SHADE[1] * (colour + 0.05)).all()


def test_scenes_differ_and_some_are_empty(pool: ItemPool) -> None:
    scenes = [draw_scene(pool, 64, 64, np.random.default_rng([0, i])) for i in range(200)]
    counts = np.bincount([len(scene.items) for scene in scenes])
    assert 0 < counts[0] < 20
    assert len(counts) == 7
    assert counts.min() > 0
    assert len({scene.image.tobytes() for scene in scenes}) == 200
