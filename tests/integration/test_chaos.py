"""A run that is killed with all its processes, by the command that users prove it with; others are in RESULTS.md."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_task_with_a_teacher_is_resumed_on_as_many_ranks_and_on_fewer(kit: Any, tmp_path: Any) -> None:
    """As many: to the last bit. Fewer: the same losses up to float order. Four runs, of which one is killed."""
    done = kit.Workplace(tmp_path).minivit("bench", "chaos", "--task=simdino", "--json", timeout_s=880)
    assert done.code == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert 0 < result["resumed_from"] <= result["killed_at"] < result["steps"]
    assert result["same_metrics"]
    assert result["same_state"]
    assert {"weights", "exp_avg", "exp_avg_sq", "ema", "teacher"} <= set(result["states"])
    assert result["other_loss_apart"] < 1e-3
