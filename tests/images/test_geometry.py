from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.data import PlainConfig
from pipeline.images.geometry import Box, Geometry, Trail, cropped, flipped, placed, turned, warped
from pipeline.images.load import TURNS, upright
from pipeline.images.plain import geometry

FULL = (30, 40)
POINTS = np.array([[0.0, 0.0], [40.0, 30.0], [12.5, 7.5], [3.0, 29.0]])
STEPS = {
    "crop": cropped(FULL, Box(3, 5, 20, 30), FULL),
    "place": placed(FULL, -4, 7, FULL),
    "flip": flipped(FULL),
    "turn": turned(FULL, TURNS[3]),
    "warp": warped(FULL, np.array([[0.9, 0.3, -2.0], [-0.2, 1.1, 4.0]])),
}


def labels(size: tuple[int, int] = FULL) -> np.ndarray:
    return np.random.default_rng(0).integers(100, size=size).astype(np.int8)


@given(st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=5))
def test_a_composition_is_one_step_after_the_other_and_its_inverse_the_way_back(names: list[str]) -> None:
    trail, points = Trail(), POINTS
    for name in names:
        trail.add(STEPS[name])
        points = STEPS[name].apply(points)
    np.testing.assert_allclose(trail.geometry.apply(POINTS), points, atol=1e-9)
    np.testing.assert_allclose(trail.geometry.inverse().apply(points), POINTS, atol=1e-6)


@given(st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=5))
def test_a_mask_is_labelled_where_every_step_shows_something_and_nowhere_else(names: list[str]) -> None:
    trail, seen = Trail(), np.ones(FULL, np.int8)
    for name in names:
        trail.add(STEPS[name])
        seen = (STEPS[name].warp_mask(seen, fill=0) == 1).astype(np.int8)
    away = (trail.geometry.warp_mask(np.zeros(FULL, np.int8)) == 0) != (seen == 1)
    assert away.mean() < 0.12, "they differ along edges alone, as every step takes the nearest pixel"
    if "warp" not in names and "crop" not in names:
        assert not away.any()


@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_mask_is_the_turned_array(orientation: int) -> None:
    turn = TURNS[orientation]
    expected = upright(labels()[:, :, None], turn)[:, :, 0]
    np.testing.assert_array_equal(turned(FULL, turn).warp_mask(labels()), expected)


def test_what_lies_outside_is_filled() -> None:
    out = placed(FULL, 2, -3, (40, 50)).warp_mask(labels(), fill=-1)
    np.testing.assert_array_equal(out[2:32, :37], labels()[:, 3:])
    assert (out[:2] == -1).all()
    assert (out[32:] == -1).all()
    assert (out[:, 37:] == -1).all()


def test_what_a_warp_pushed_out_does_not_come_back() -> None:
    away, back = (warped(FULL, np.array([[1.0, 0, by], [0, 1, 0]])) for by in (10, -10))
    out = away.then(back).warp_mask(labels())
    np.testing.assert_array_equal(out[:, :30], labels()[:, :30])
    assert (out[:, 30:] == -1).all()
    cut = cropped(FULL, Box(0, 10, 30, 20), (30, 20)).then(placed((30, 20), 0, 5, (30, 20)))
    assert (cut.warp_mask(labels())[:, :5] == -1).all(), "it was cut off before, though the image goes on there"


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_every_way_through_keeps_the_type_and_takes_the_nearest_pixel(dtype: type) -> None:
    mask = labels().astype(dtype)
    shrunk = cropped(FULL, Box(0, 0, *FULL), (10, 10)).warp_mask(mask)
    np.testing.assert_array_equal(shrunk, mask[1::3][:, 2::4])
    barely = Geometry(FULL, FULL, np.array([[1.0, 1e-9, 0], [0, 1, 0]]))  # not along the axes: OpenCV's way
    np.testing.assert_array_equal(barely.warp_mask(mask), mask)
    assert barely.warp_mask(mask).dtype == shrunk.dtype == dtype


@pytest.mark.parametrize("resize", ["squash", "shorter", "pad"])
def test_evaluation_is_centred(resize: str) -> None:
    shown = geometry((30, 50), (16, 24), PlainConfig(resize=resize, crop_pct=1.0 if resize == "pad" else 0.8))
    np.testing.assert_allclose(shown.apply([[25.0, 15.0]]), [[12.0, 8.0]], atol=0.5)
    assert shown.within() == (resize != "pad")


def test_a_mask_that_is_too_long_to_warp_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = warped(FULL, np.array([[0.9, -0.3, 2.0], [0.3, 0.9, -1.0]]))
    expected = turn.warp_mask(labels())
    monkeypatch.setattr("pipeline.images.geometry.WARP_LIMIT", 1)
    same = turn.warp_mask(labels()) == expected
    assert same.mean() > 0.98, "but for centres between two pixels"
    long = warped((40_000, 3), np.array([[1.0, 0.1, 0.0], [0.0, 1.0, 0.0]]))
    assert long.warp_mask(np.ones((40_000, 3), np.int8)).max() == 1
