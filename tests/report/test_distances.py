from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.distances import describe_distances, draw_distances, measure_distances

GRID, PATCH = (3, 4), (8, 8)
N = 12


def attention(weights: np.ndarray, depth: int = 2, heads: int = 2, prefix: int = 1) -> np.ndarray:
    maps = np.full((1, depth, heads, prefix + N, prefix + N), 0.3)
    maps[..., prefix:, prefix:] = weights
    return maps


def test_attention_on_oneself_is_no_distance_and_even_attention_is_that_of_everything() -> None:
    near = measure_distances(attention(np.eye(N)), GRID, PATCH)
    assert not near.heads.any()
    even = measure_distances(attention(np.full((N, N), 0.01)), GRID, PATCH)
    assert even.heads == pytest.approx(np.full((2, 2), even.everything))


def test_distances_are_pixels_between_patches() -> None:
    right = np.roll(np.eye(N), 1, axis=1)  # the next patch: 8 px, or from a row's end the start of the next
    ends = np.hypot(8, 3 * 8)
    wrapped = np.hypot(2 * 8, 3 * 8)
    found = measure_distances(attention(right), GRID, PATCH)
    assert found.heads == pytest.approx(np.full((2, 2), (9 * 8 + 2 * ends + wrapped) / N))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
def test_convolutions_see_farther_with_each_layer_until_they_see_all(height: int, width: int, depth: int) -> None:
    count = height * width
    maps = np.full((1, depth, 1, count, count), 1 / count)
    found = measure_distances(maps, (height, width), PATCH)
    assert (np.diff(found.convolutions) >= -1e-9).all()
    assert (found.convolutions <= found.everything + 1e-9).all()
    if depth >= max(height, width) - 1:
        assert found.convolutions[-1] == pytest.approx(found.everything)


def test_heads_keep_their_places() -> None:
    maps = attention(np.eye(N), depth=3)
    maps[0, 2, 1, 1:, 1:] = 1
    found = measure_distances(maps, GRID, PATCH)
    assert np.argwhere(found.heads > 0).tolist() == [[2, 1]]
    assert "of the last 0 to " in describe_distances("small", found)
    (axes,) = draw_distances(found).axes
    assert len(axes.lines) == len(maps[0, 0]) + 3
