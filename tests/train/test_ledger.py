from __future__ import annotations

import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.train.ledger import NAME, LedgerTail, MetricsLedger, read_metrics


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


def test_a_tail_gives_each_whole_row_once(tmp_path: Path) -> None:
    tail = LedgerTail(tmp_path)
    assert tail.new_rows() == []
    write(tmp_path, 0, range(3))
    assert [row["step"] for row in tail.new_rows()] == [0, 1, 2]
    assert tail.new_rows() == []
    with (tmp_path / NAME).open("a") as file:
        file.write('{"step": 3, "ti')
        file.flush()
        assert tail.new_rows() == []
        file.write('me": 1.0}\n')
    assert [row["step"] for row in tail.new_rows()] == [3]


def test_a_tail_follows_a_file_that_is_replaced(tmp_path: Path) -> None:
    """As it is when a stage resumes: rows beyond the checkpoint are gone, and others follow."""
    tail = LedgerTail(tmp_path)
    write(tmp_path, 0, range(1, 6))
    tail.new_rows()
    write(tmp_path, 3, range(4, 8))
    assert [row["step"] for row in tail.new_rows()] == [1, 2, 3, 4, 5, 6, 7]
