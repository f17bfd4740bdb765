from __future__ import annotations

import io
import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.shards.make._scenes_draw import draw_scene
from pipeline.shards.make._scenes_items import ItemPool
from pipeline.shards.make._scenes_labels import run_lengths, sample_members
from pipeline.shards.make.fashion_mnist import CLASSES


def mask_of(segmentation: dict) -> np.ndarray:
    runs = segmentation["counts"]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(segmentation["size"], order="F")


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_give_the_mask_back(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(mask_of({"size": mask.shape, "counts": run_lengths(mask)}), mask)


@pytest.mark.parametrize("seed", range(25))
def test_labels_agree_with_each_other_and_with_the_scene(pool: ItemPool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(64, 150, 2).tolist()
    scene = draw_scene(pool, height, width, rng)
    members = sample_members(scene, "a caption")
    labels = json.loads(members["json"])
    assert (labels["width"], labels["height"], labels["caption"]) == (width, height, "a caption")
    assert members["txt"] == b"a caption"

    ids = np.zeros((height, width), np.uint8)
    depth = cv2.imdecode(np.frombuffer(members["depth.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(depth, scene.depth_mm)
    assert len(labels["annotations"]) == len(scene.items)
    for number, (one, item) in enumerate(zip(labels["annotations"], scene.items, strict=True), 1):
        seen = mask_of(one["segmentation"])
        np.testing.assert_array_equal(seen, scene.owner == number)
        assert not ids[seen].any()
        ids[seen] = one["category_id"]
        rows, columns = np.nonzero(seen)
        x, y, w, h = one["bbox"]
        assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert (one["area"], one["iscrowd"]) == (seen.sum(), 0)
        assert one["category"] == CLASSES[one["category_id"] - 1] == CLASSES[item.label]
        assert (depth[seen] == one["depth"]).all()
        assert one["color"] == item.colour
        check_keypoints(one, item, scene.owner, number)

    picture = Image.open(io.BytesIO(members["seg.png"]))
    assert picture.mode == "P"
    assert members["seg.png"][24] == 8  # bits of a pixel
    np.testing.assert_array_equal(np.asarray(picture), ids)
    image = np.asarray(Image.open(io.BytesIO(members["jpg"])))
    assert np.abs(image.astype(int) - scene.image).mean() < 4


def check_keypoints(annotation: dict, item, owner: np.ndarray, number: int) -> None:
    points = np.array(annotation["keypoints"]).reshape(5, 3)
    assert annotation["num_keypoints"] == (points[:, 2] > 0).sum()
    for (x, y, visibility), (column, row) in zip(points, item.points, strict=True):
        inside = 0 <= row < owner.shape[0] and 0 <= column < owner.shape[1]
        if not inside:
            assert (x, y, visibility) == (0, 0, 0)
            continue
        assert (int(x), int(y)) == (column, row)
        assert visibility == (2 if owner[row, column] == number else 1)
        assert owner[row, column] >= number  # hidden by what is nearer


def test_colours_stay_true_where_items_meet(pool: ItemPool) -> None:
    """Chroma is not halved: the class map's edges are the picture's."""
    scene = draw_scene(pool, 96, 96, np.random.default_rng(1))
    assert (
        b"\x01\x11\x00\x02\x11\x01\x03\x11" in sample_members(scene, "")["jpg"]
    )  # sampling factors 1x1 of three planes
