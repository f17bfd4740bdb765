from __future__ import annotations

from pipeline.bench.multiscale import measure


def test_the_cost_is_that_of_the_same_steps_in_turn() -> None:
    result = measure("nano", [32, 24], batch_size=16, threads=1, rounds=3)
    assert result["sizes"] == [24, 32]
    assert result["fixed_seconds"][0] < result["fixed_seconds"][1], "a larger image takes longer"
    assert result["cost"] == sorted(result["rounds"])[1] > -1
