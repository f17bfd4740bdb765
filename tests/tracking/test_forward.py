from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.config.schema import TrackingConfig
from pipeline.errors import TrackingError
from pipeline.tracking.forward import MetricsForwarder
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import choose_store

Row = dict[str, float]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.forward.FLUSH_S", 0.05)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("runs")
    return Tracker(choose_store(TrackingConfig(), folder, {}, {}))


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.start("stage", run_id=None)


class Ledger:
    """A metrics file that a test writes to."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, steps: Iterable[int], name: str = "train/loss") -> None:
        self.rows += [{"step": step, "time": time.time(), "samples": 8 * step, name: step / 7} for step in steps]

    def new_rows(self) -> list[Row]:
        rows, self.rows = self.rows, []
        return rows


def steps(tracker: Tracker, run_id: str, key: str = "train/loss") -> list[int]:
    history = tracker.client.get_metric_history(run_id, key)
    assert all(metric.value == metric.step / 7 for metric in history)
    return sorted(metric.step for metric in history)


def test_everything_has_arrived_at_the_end(tracker: Tracker, run_id: str) -> None:
    ledger = Ledger()
    with MetricsForwarder(tracker, run_id, ledger.new_rows):
        ledger.add(range(1, 31))
        ledger.add([30], "val/loss")
    assert steps(tracker, run_id) == list(range(1, 31))
    assert steps(tracker, run_id, "val/loss") == [30]
    assert tracker.client.get_metric_history(run_id, "samples") == []


def test_rows_arrive_while_the_stage_runs(tracker: Tracker, run_id: str) -> None:
    ledger = Ledger()
    with MetricsForwarder(tracker, run_id, ledger.new_rows):
        ledger.add([1])
        due = time.monotonic() + 20
        while steps(tracker, run_id) != [1]:
            assert time.monotonic() < due


def test_replayed_steps_leave_no_second_row(tracker: Tracker, run_id: str) -> None:
    """Workers lost at step 20, gone on from the checkpoint at step 10; then the driver, at step 30."""
    ledger = Ledger()
    with MetricsForwarder(tracker, run_id, ledger.new_rows):
        ledger.add(range(1, 21))
        ledger.add(range(11, 31))
    with MetricsForwarder(tracker, run_id, ledger.new_rows):
        ledger.add(range(1, 41))
        ledger.add(range(10, 41, 10), "val/loss")
    assert steps(tracker, run_id) == list(range(1, 41))
    assert steps(tracker, run_id, "val/loss") == [10, 20, 30, 40]


def test_more_than_one_call_takes(tracker: Tracker, run_id: str) -> None:
    ledger = Ledger()
    with MetricsForwarder(tracker, run_id, ledger.new_rows):
        ledger.add(range(2500))
    assert steps(tracker, run_id) == list(range(2500))


def test_a_run_that_is_gone_is_an_error_at_the_end(tracker: Tracker) -> None:
    ledger = Ledger()
    ledger.add([1, 2])
    expected = r"^tracking\.uri: .* refused .*not found.*; 2 metric values are in metrics\.jsonl only"
    with pytest.raises(TrackingError, match=expected), MetricsForwarder(tracker, "0" * 32, ledger.new_rows):
        pass


def test_what_else_went_wrong_is_not_hidden(tracker: Tracker, tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.add([1])
    with pytest.raises(KeyError, match="other"), MetricsForwarder(tracker, "0" * 32, ledger.new_rows):
        raise KeyError("other")
