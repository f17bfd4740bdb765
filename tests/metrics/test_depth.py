from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.depth import DEPTH, DepthIntervals, depth_errors, depth_measures


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_measures_are_those_of_a_plain_formula_however_pixels_are_cut(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 8, (7, 9)) * (rng.random((7, 9)) < 0.7)
    metres = rng.uniform(0.5, 8, (7, 9))
    sums = sum(
        depth_errors(torch.from_numpy(d), torch.from_numpy(t))
        for d, t in zip(np.array_split(metres, parts), np.array_split(truth, parts), strict=True)
    )
    found = depth_measures(sums.tolist())
    d, t = metres[truth > 0], truth[truth > 0]
    assert found["abs_rel"] == pytest.approx((np.abs(d - t) / t).mean(), abs=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt(((d - t) ** 2).mean()), abs=1e-6)
    assert found["delta1"] == pytest.approx((np.maximum(d / t, t / d) < 1.25).mean(), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_errors_are_those_of_scikit_learn(scale: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth = scale * rng.uniform(0.5, 8, (30, 40)) * (rng.random((30, 40)) < 0.7)
    metres = (scale * rng.uniform(0.5, 8, (30, 40))).astype(np.float32)
    found = depth_measures(depth_errors(torch.from_numpy(metres), torch.from_numpy(truth)).tolist())
    pair = truth[truth > 0], metres[truth > 0].astype(float)
    assert found["abs_rel"] == pytest.approx(metrics.mean_absolute_percentage_error(*pair), rel=1e-6)
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(*pair), rel=1e-6)


def test_nothing_measured_is_no_error() -> None:
    assert depth_measures(depth_errors(torch.rand(2, 2), torch.zeros(2, 2)).tolist()) == {}


def test_intervals_are_the_same_however_images_are_shared_among_ranks() -> None:
    rng = np.random.default_rng(0)
    alone, *ranks = (DepthIntervals() for _ in range(3))
    sums = torch.zeros(4, dtype=torch.float64)
    for slot in range(40):
        truth = torch.from_numpy(rng.uniform(1, 8, (4, 6)))
        metres = truth * float(np.exp(rng.normal(0, 0.3)))
        sums += depth_errors(metres, truth)
        fields = {"depth_full": truth.flatten(), "depth_full.offsets": torch.tensor([0, 24])}
        fields["depth_full_size"] = torch.tensor([[4, 6]])
        batch = SimpleNamespace(targets=fields, slots=torch.tensor([slot]), weights=torch.ones(1))
        for collector in (alone, ranks[slot % 2]):
            collector.add([metres], batch)
    ranks[1].merge(ranks[0].state())
    found, measures = alone.intervals(), depth_measures(sums.tolist())
    assert found.keys() == measures.keys()
    for name, (low, high) in found.items():
        assert (low, high) == pytest.approx(ranks[1].intervals()[name])
        assert low < measures[name] < high


def test_what_is_predicted_where_nothing_was_measured_does_not_count() -> None:
    metres, truth = torch.tensor([[1.0, torch.inf, torch.nan, 0]]), torch.tensor([[2.0, 0, 0, 0]])
    assert depth_errors(metres, truth).tolist() == [1.0, 0.5, 1.0, 0.0]


def test_the_least_relative_error_selects() -> None:
    assert (DEPTH.selects, DEPTH.better("val/abs_rel"), DEPTH.better("val/delta1")) == ("abs_rel", "lower", "higher")
