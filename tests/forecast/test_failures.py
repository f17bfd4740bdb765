from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.forecast.failures import daly_s, goodput, young_s


def test_intervals_by_hand() -> None:
    """A save of 50 s and a failure every 10,000 s: Young 1,000 s; Daly adds a 60th and a 3,600th, less the save."""
    assert young_s(50, 10_000) == 1000
    assert daly_s(50, 10_000) == pytest.approx(1000 * (1 + 0.05 / 3 + 0.0025 / 9) - 50)


def test_saves_as_rare_as_failures_leave_the_interval_at_the_mean_time_between_them() -> None:
    assert daly_s(201, 100) == 100


@given(st.floats(0.01, 100), st.floats(1e6, 1e9))
def test_dalys_interval_approaches_youngs(save_s: float, mtbf_s: float) -> None:
    """As failures become rare, both agree to within the ratio of a save to the interval."""
    young = young_s(save_s, mtbf_s)
    assert daly_s(save_s, mtbf_s) == pytest.approx(young, rel=2 * save_s / young)


@pytest.mark.parametrize("save_s", [1, 30, 600])
def test_dalys_interval_is_the_best(save_s: float) -> None:
    mtbf_s, recovery_s = 20_000.0, 100.0
    best = goodput(daly_s(save_s, mtbf_s), save_s, recovery_s, mtbf_s)
    others = [goodput(interval, save_s, recovery_s, mtbf_s) for interval in np.geomspace(1, 1e5, 400)]
    assert best == pytest.approx(max(others), rel=1e-4)


def test_goodput_against_failures_drawn_at_random() -> None:
    """Intervals of 300 s with saves of 20 s, recoveries of 60 s that may fail too, a failure every 1,000 s."""
    random, wall, done = np.random.default_rng(0), 0.0, 20_000
    for _ in range(done):
        while (failure := random.exponential(1000)) < 320:
            wall += failure
            while (again := random.exponential(1000)) < 60:
                wall += again
            wall += 60
        wall += 320
    assert goodput(300, 20, 60, 1000) == pytest.approx(300 * done / wall, rel=0.01)


@given(st.floats(0.1, 1e5), st.floats(0, 1e3), st.floats(0, 1e5), st.floats(1e-3, 1e9))
def test_goodput_is_a_share(interval_s: float, save_s: float, recovery_s: float, mtbf_s: float) -> None:
    found = goodput(interval_s, save_s, recovery_s, mtbf_s)
    assert 0 <= found <= interval_s / (interval_s + save_s) * (1 + 1e-9)
    assert math.isfinite(found)
