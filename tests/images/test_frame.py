from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.decode import read_header
from pipeline.images.frame import PADDING, frame_matrix, seen_box
from pipeline.images.geometry import Geometry, Trail, transform
from pipeline.images.load import load_frame

WHITE = (255, 255, 255)
SIDES = st.floats(2, 300)


@given(SIDES, SIDES, SIDES, SIDES, st.floats(-180, 180), st.sampled_from([(64, 48), (96, 96), (32, 80)]))
def test_the_box_is_in_the_middle_and_fills_its_share(
    left: float, top: float, width: float, height: float, angle: float, size: tuple[int, int]
) -> None:
    box = np.array([left, top, left + width, top + height])
    matrix = frame_matrix(box, size, angle=angle)
    middle = transform(matrix, np.array([[left + width / 2, top + height / 2]]))
    np.testing.assert_allclose(middle, [[size[1] / 2, size[0] / 2]], atol=1e-6)
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    assert max(width * scale / size[1], height * scale / size[0]) == pytest.approx(1 / PADDING)
    turned = matrix[:, :2] @ [1, 0]
    assert np.degrees(np.arctan2(turned[1], turned[0])) == pytest.approx(angle, abs=1e-6) or abs(angle) == 180


def encoded(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(
    ("box", "angle"), [((40, 20, 120, 90), 0), ((150, 10, 200, 40), 25), ((300, 200, 900, 700), -40)]
)
def test_it_shows_what_the_trail_says(suffix: str, box: tuple[int, ...], angle: float) -> None:
    """In a gradient in x and y, each pixel shows where it came from, also in a JPEG decoded at reduced scale."""
    rows, columns = np.mgrid[:768, :1024]
    image = np.stack([columns / 4, rows / 4, np.full_like(rows, 128)], axis=2).astype(np.uint8)
    data = encoded(image, suffix)
    frame, trail = Geometry((768, 1024), (64, 48), frame_matrix(np.array(box, float), (64, 48), angle=angle)), Trail()
    shown = load_frame(data, read_header(data), frame, 3, WHITE, trail)
    assert shown.shape == (64, 48, 3)
    np.testing.assert_allclose(trail.geometry.matrix, frame.matrix, atol=1e-9)
    y, x = np.mgrid[4:60:8, 4:44:8]
    back = frame.inverse().apply(np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1))
    inside = ((back > 8) & (back < [1016, 760])).all(axis=1)
    assert inside.sum() > 10
    found = shown[y.ravel(), x.ravel(), :2][inside].astype(float)
    assert np.abs(found - (back[inside] - 0.5) / 4).max() < 3


def test_beyond_the_image_it_is_black() -> None:
    data = encoded(np.full((20, 20, 3), 200, np.uint8), ".png")
    frame = Geometry((20, 20), (32, 32), frame_matrix(np.array([10.0, 0, 30, 20]), (32, 32)))
    shown = load_frame(data, read_header(data), frame, 3, WHITE)
    assert (shown[8:24, 4:10] == 200).all()
    assert not shown[:, 20:].any()
    away = Geometry((20, 20), (32, 32), frame_matrix(np.array([100.0, 100, 110, 110]), (32, 32)))
    assert seen_box(away) is None
    assert not load_frame(data, read_header(data), away, 1, WHITE, Trail()).any()
