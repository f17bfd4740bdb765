from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.images.decode import BadImage
from pipeline.images.depth_map import ShallowDepth, decode_depth, depth_colors, depth_limits, millimetres


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def test_all_16_bits_come_back() -> None:
    steps = np.arange(0, 65535, 15, dtype=np.uint16).reshape(-1, 17)
    found = decode_depth(png(steps))
    assert found.dtype == np.uint16
    assert np.array_equal(found, steps)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.uint16)])
def test_other_pngs_are_told_apart_from_damage(array: np.ndarray) -> None:
    with pytest.raises(ShallowDepth, match="must be 16-bit grey PNGs"):
        decode_depth(png(array))
    with pytest.raises(BadImage, match="truncated or damaged"):
        decode_depth(png(np.ones((9, 9), np.uint16))[:45])


def test_metres_are_written_as_they_are_read() -> None:
    metres = np.array([[0.0001, 1.2346, 70.0]], np.float32)
    assert decode_depth(png(millimetres(metres))).tolist() == [[1, 1235, 65535]]


def test_colours_are_warm_where_it_is_near_and_black_where_nothing_was_measured() -> None:
    near, far, none = depth_colors(np.array([[1.0, 5.0, 0.0]]))[0].astype(int)
    assert near[0] > near[2]
    assert far[2] > far[0]
    assert none.tolist() == [0, 0, 0]
    assert depth_limits(np.zeros((2, 2))) == (1.0, 2.0)
    assert not depth_colors(np.zeros((2, 2))).any()
