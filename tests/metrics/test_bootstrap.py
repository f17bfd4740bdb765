from __future__ import annotations

import numpy as np
import pytest

from pipeline.metrics.bootstrap import FEWEST, RESAMPLES, ResampledSums, draws, intervals
from pipeline.probe.interval import wilson


def test_an_image_is_drawn_once_on_average_and_as_often_whatever_the_others_are() -> None:
    counts = draws(range(500))
    assert counts.shape == (RESAMPLES, 500)
    assert counts.mean() == pytest.approx(1, abs=0.02)
    assert counts.var() == pytest.approx(1, abs=0.02)
    assert np.array_equal(draws([7, 3]), counts[:, [7, 3]])
    assert draws([]).shape == (RESAMPLES, 0)


def share(right: np.ndarray) -> ResampledSums:
    """Images [N, n] of n objects, each right or not."""
    found = ResampledSums(2)
    for slot, one in enumerate(right):
        found.add(slot, np.array([one.sum(), one.size]))
    return found


def ratio(sums: np.ndarray) -> dict[str, float]:
    return {"share": sums[0] / sums[1]} if sums[1] else {}


def test_of_independent_objects_it_is_that_of_wilson_and_of_alike_ones_in_an_image_wider() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((400, 5)) < 0.7
    [(low, high)] = share(right).intervals(ratio).values()
    assert (low, high) == pytest.approx(wilson(int(right.sum()), right.size), abs=0.01)
    [(low, high)] = share(right[:, :1].repeat(5, axis=1)).intervals(ratio).values()
    assert (low, high) == pytest.approx(wilson(int(right[:, 0].sum()), 400), abs=0.015)


def test_there_is_none_where_too_few_images_decide() -> None:
    varied = np.arange(RESAMPLES, dtype=float)
    torn = varied.copy()
    torn[3] = np.nan
    resampled = {"varied": varied, "same": np.ones(RESAMPLES), "undefined in one": torn}
    assert intervals(resampled, FEWEST).keys() == {"varied"}
    assert intervals(resampled, FEWEST - 1) == {}
