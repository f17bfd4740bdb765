"""Random kills, through the users' own command; RESULTS.md has a run with thirty of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

KILLS = 1


def test_a_run_that_is_killed_at_random_leaves_what_an_undisturbed_one_leaves(kit: Any, tmp_path: Any) -> None:
    done = kit.Workplace(tmp_path).minivit("bench", "chaos", f"--kills={KILLS}", "--json", timeout_s=880)
    assert done.code == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] >= KILLS - 1  # a short last phase can be over before its kill
    assert result["starts"] > 1
    assert result["same_weights"]
    assert result["same_metrics"]
    assert result["same_evaluation"]
