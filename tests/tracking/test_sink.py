from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.errors import TrackingError
from pipeline.tracking.runs import Tracker, default_uri
from pipeline.tracking.sink import MLflowSink


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("runs")
    return Tracker(default_uri(folder), "minivit", folder / "artifacts")


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return tracker.start("stage", run_id=None)


def history(tracker: Tracker, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in tracker.client.get_metric_history(run_id, key))


def test_everything_has_arrived_when_it_is_closed(tracker: Tracker, run_id: str) -> None:
    sink = MLflowSink(tracker.uri, run_id)
    for step in range(30):
        sink.log(step, {"train/loss": 1 / (step + 1), "train/lr": 0.1})
    sink.log(30, {"val/accuracy": 0.5})
    sink.close()
    assert history(tracker, run_id, "train/loss") == [(step, pytest.approx(1 / (step + 1))) for step in range(30)]
    assert history(tracker, run_id, "val/accuracy") == [(30, 0.5)]


def test_replayed_steps_leave_no_second_row(tracker: Tracker, run_id: str) -> None:
    """Killed at step 20, gone on from the checkpoint at step 10."""
    for steps in (range(1, 21), range(11, 31)):
        sink = MLflowSink(tracker.uri, run_id)
        for step in steps:
            sink.log(step, {"train/loss": float(step)})
            if step % 10 == 0:
                sink.log(step, {"val/loss": float(step)})
        sink.close()
    assert history(tracker, run_id, "train/loss") == [(step, float(step)) for step in range(1, 31)]
    assert history(tracker, run_id, "val/loss") == [(step, float(step)) for step in (10, 20, 30)]


def test_it_travels_as_plain_data(tracker: Tracker, run_id: str) -> None:
    sink = pickle.loads(pickle.dumps(MLflowSink(tracker.uri, run_id)))
    sink.log(1, {"train/loss": 2.0})
    sink.close()
    assert history(tracker, run_id, "train/loss") == [(1, 2.0)]


def test_a_rank_that_never_logs_never_connects() -> None:
    MLflowSink("http://127.0.0.1:9", "x").close()


def test_a_store_that_is_gone_is_an_error_at_the_end(tmp_path: Path) -> None:
    sink = MLflowSink("http://127.0.0.1:9", "x")
    sink.log(1, {"train/loss": 2.0, "train/lr": 0.1})
    with pytest.raises(
        TrackingError, match=r"^tracking\.uri: .* stopped answering; 2 metric values are in metrics.jsonl"
    ):
        sink.close()


def test_a_run_that_is_gone_is_an_error_at_the_end(tracker: Tracker) -> None:
    sink = MLflowSink(tracker.uri, "0" * 32)
    sink.log(1, {"train/loss": 2.0})
    with pytest.raises(TrackingError, match=r"1 metric values are in metrics\.jsonl"):
        sink.close()
