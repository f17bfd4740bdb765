from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.train.ledger import NAME, MetricsLedger, read_metrics


def write(folder: Path, resume_step: int, steps: range) -> None:
    ledger = MetricsLedger(folder, resume_step)
    for step in steps:
        ledger.append(step, step * 8, {"train/loss": step / 7})
    ledger.close()


def test_rows_hold_step_time_samples_and_metrics(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 3))
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["samples"], row["train/loss"]) for row in rows] == [(1, 8, 1 / 7), (2, 16, 2 / 7)]
    assert rows[0]["time"] <= rows[1]["time"]


def test_no_file_means_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


@given(reached=st.integers(0, 30), resume=st.integers(0, 30), cut=st.integers(0, 60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_a_replay_leaves_no_step_twice(tmp_path: Path, reached: int, resume: int, cut: int) -> None:
    """Killed after `reached` steps, with the last bytes torn off, resumed from a checkpoint at `resume`."""
    resume = min(resume, reached)
    (tmp_path / NAME).unlink(missing_ok=True)
    write(tmp_path, 0, range(1, reached + 1))
    text = (tmp_path / NAME).read_bytes()
    lines = len(text[: len(text) - cut].decode().splitlines())
    (tmp_path / NAME).write_bytes(text[: max(len(text) - cut, 0)])
    write(tmp_path, resume, range(resume + 1, 36))
    steps = [row["step"] for row in read_metrics(tmp_path)]
    whole = lines if cut == 0 else max(lines - 1, 0)
    assert steps[-(35 - resume) :] == list(range(resume + 1, 36))
    assert len(set(steps)) == len(steps)
    assert set(range(1, min(whole, resume) + 1)) <= set(steps)
    assert all(json.loads(line) for line in (tmp_path / NAME).read_text().splitlines())


def test_a_row_is_on_disk_once_it_is_appended(tmp_path: Path) -> None:
    ledger = MetricsLedger(tmp_path, 0)
    ledger.append(1, 8, {})
    assert len(read_metrics(tmp_path)) == 1
    ledger.close()


def test_a_stage_that_starts_anew_keeps_no_row(tmp_path: Path) -> None:
    write(tmp_path, 0, range(3))
    write(tmp_path, 0, range(2))
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1]


def test_a_stage_that_goes_on_keeps_the_row_before_its_first_step(tmp_path: Path) -> None:
    write(tmp_path, 0, range(3))
    write(tmp_path, 2, range(3, 4))
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
