from __future__ import annotations

import numpy as np
import pytest

from pipeline.report.filters import COLUMNS, ROWS, describe_filters, draw_filters, principal_filters


def test_components_are_the_directions_in_which_filters_differ() -> None:
    rng = np.random.default_rng(0)
    edge, spot = np.zeros((4, 4)), np.zeros((4, 4))
    edge[:, 2:], spot[1, 1] = 1, 1
    kernel = (rng.normal(size=(64, 1, 1)) * 5 * edge + rng.normal(size=(64, 1, 1)) * spot)[:, None] + 7
    found = principal_filters(kernel)
    assert found.components.shape == (16, 4, 4)
    assert found.components[0] == pytest.approx(0.5 + 0.5 * edge, abs=0.05)
    assert found.share == pytest.approx(1)


@pytest.mark.parametrize(("channels", "shape"), [(1, (28, 8, 8)), (3, (28, 8, 8, 3)), (5, (28, 8, 8))])
def test_colours_are_shown_where_there_are_three(channels: int, shape: tuple[int, ...]) -> None:
    kernel = np.random.default_rng(0).normal(size=(96, channels, 8, 8)).astype(np.float32)
    found = principal_filters(kernel)
    assert found.components.shape == shape
    assert found.components.min() >= 0
    assert found.components.max() == pytest.approx(1)
    assert len([axes for axes in draw_filters(found).axes if axes.images]) == COLUMNS * ROWS
    assert describe_filters("small", found).startswith(
        "The first 28 principal components of the patch embedding of small"
    )


def test_fewer_filters_than_places_leave_places_empty() -> None:
    found = principal_filters(np.random.default_rng(0).normal(size=(3, 1, 2, 2)))
    assert len(found.components) == 3
    assert len([axes for axes in draw_filters(found).axes if axes.images]) == 3
