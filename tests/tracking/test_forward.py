from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from pipeline.config.schema import TrackingConfig
from pipeline.errors import TrackingError
from pipeline.tracking.forward import RowSender
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import choose_store

Row = dict[str, float]


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


def test_rows_arrive_each_time(tracker: Tracker, run_id: str) -> None:
    ledger = Ledger()
    sender = RowSender(tracker, run_id, ledger.new_rows)
    ledger.add(range(1, 31))
    sender.send()
    ledger.add([30], "val/loss")
    sender.send()
    assert steps(tracker, run_id) == list(range(1, 31))
    assert steps(tracker, run_id, "val/loss") == [30]
    assert tracker.client.get_metric_history(run_id, "samples") == []


def test_replayed_steps_leave_no_second_row(tracker: Tracker, run_id: str) -> None:
    """Workers lost at step 20, gone on from the checkpoint at step 10; then the driver, at step 30."""
    ledger = Ledger()
    sender = RowSender(tracker, run_id, ledger.new_rows)
    ledger.add(range(1, 21))
    ledger.add(range(11, 31))
    sender.send()
    sender = RowSender(tracker, run_id, ledger.new_rows)
    ledger.add(range(1, 41))
    ledger.add(range(10, 41, 10), "val/loss")
    sender.send()
    assert steps(tracker, run_id) == list(range(1, 41))
    assert steps(tracker, run_id, "val/loss") == [10, 20, 30, 40]


def test_more_than_one_call_takes(tracker: Tracker, run_id: str) -> None:
    ledger = Ledger()
    ledger.add(range(2500))
    RowSender(tracker, run_id, ledger.new_rows).send()
    assert steps(tracker, run_id) == list(range(2500))


def test_rows_wait_in_their_file_while_the_store_refuses(tracker: Tracker, run_id: str) -> None:
    """A run that is deleted for a while."""
    ledger = Ledger()
    sender = RowSender(tracker, run_id, ledger.new_rows)
    ledger.add([1])
    sender.send()
    tracker.client.delete_run(run_id)
    ledger.add([2])
    for step in (3, 4):
        with pytest.raises(TrackingError, match=r"^tracking\.uri: .* refused .*deleted"):
            sender.send()
        ledger.add([step])
    assert [row["step"] for row in ledger.rows] == [3, 4]
    tracker.client.restore_run(run_id)
    sender.send()
    assert steps(tracker, run_id) == [1, 2, 3, 4]
