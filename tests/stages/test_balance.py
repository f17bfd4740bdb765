from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.load import parse_config
from pipeline.errors import ConfigError
from pipeline.stages.balance import balance
from pipeline.stream.order import step_shares


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_step_shares_match_counting_slot_by_slot(lanes: int, factor: int, ranks: int, batch_is_larger: bool) -> None:
    batch = lanes * factor if batch_is_larger else max(lanes // factor, 1)
    steps = [
        [sum(slot % lanes % ranks == rank for slot in range(s * batch, (s + 1) * batch)) for rank in range(ranks)]
        for s in range(lanes)
    ]
    assert step_shares(lanes, batch, ranks) == (min(map(min, steps)), max(map(max, steps)))


@given(st.integers(1, 30), st.integers(1, 8))
def test_multiples_of_the_ranks_share_evenly(ranks: int, factor: int) -> None:
    assert step_shares(ranks * factor, ranks * factor, ranks) == (factor, factor)


def test_amounts_of_a_stage(raw: dict[str, Any]) -> None:
    stage = parse_config(raw, "c").stages["pretrain"]  # 8 lanes, windows of 4, batches of 16
    shares = balance(stage, 3, samples_per_epoch=80, mean_sample_bytes=100.0, where="stages.pretrain")
    assert shares.lanes == (2, 3)
    assert shares.step_samples == (4, 6)
    assert shares.epoch_samples == (20, 30)
    assert shares.window_bytes == 3 * 4 * 100
    assert shares.idle_share == pytest.approx(1 / 3)


def test_a_lane_may_be_shorter_than_a_window(raw: dict[str, Any]) -> None:
    stage = parse_config(raw, "c").stages["pretrain"]
    assert balance(stage, 1, 16, 100.0, where="x").window_bytes == 8 * 2 * 100


def test_unknown_data_leaves_unknown_amounts(raw: dict[str, Any]) -> None:
    shares = balance(parse_config(raw, "c").stages["pretrain"], 2, None, None, where="x")
    assert (shares.step_samples, shares.epoch_samples, shares.window_bytes) == ((8, 8), None, None)


def test_more_ranks_than_lanes_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^stages\.pretrain\.data\.lanes: 8 is too few for 9 workers"):
        balance(parse_config(raw, "c").stages["pretrain"], 9, None, None, where="stages.pretrain")
