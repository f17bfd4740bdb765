from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.train.lr_schedule import lr_ratio

SCHEDULES = st.sampled_from(["cosine", "linear", "constant", "wsd"])


@given(
    total=st.integers(1, 5000),
    warmup=st.integers(0, 500),
    schedule=SCHEDULES,
    final=st.floats(0, 1),
    decay=st.integers(0, 6000),
    data=st.data(),
)
def test_ratio_is_a_share_of_the_peak(
    total: int, warmup: int, schedule: str, final: float, decay: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total - 1))
    ratio = lr_ratio(step, total, warmup, schedule, final, decay)
    assert 0 <= ratio <= 1
    if step < warmup:
        assert ratio == pytest.approx((step + 1) / (warmup + 1))
    elif schedule == "constant":
        assert ratio == 1
    else:
        assert ratio >= final * (1 - 1e-9)


@given(st.integers(2, 3000), st.integers(0, 300), SCHEDULES, st.floats(0, 1), st.integers(0, 4000))
def test_rises_through_the_warm_up_and_never_after(
    total: int, warmup: int, schedule: str, final: float, decay: int
) -> None:
    ratios = [lr_ratio(step, total, warmup, schedule, final, decay) for step in range(total)]
    rising, falling = ratios[: warmup + 1], ratios[warmup:]
    assert all(after > before for before, after in itertools.pairwise(rising))
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(falling))


def test_values_of_the_published_schedules() -> None:
    assert lr_ratio(0, 100, 0, "cosine", 0.0) == 1
    assert lr_ratio(50, 100, 0, "cosine", 0.0) == pytest.approx(0.5)
    assert lr_ratio(25, 100, 0, "cosine", 0.2) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert lr_ratio(75, 100, 0, "linear", 0.0) == pytest.approx(0.25)
    assert lr_ratio(100, 100, 10, "linear", 0.1) == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay() -> None:
    ratios = [lr_ratio(step, 100, 10, "wsd", 0.1, 20) for step in range(101)]
    assert set(ratios[10:81]) == {1.0}
    assert ratios[90] == pytest.approx(0.55)
    assert ratios[100] == pytest.approx(0.1)
