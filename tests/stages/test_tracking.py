"""Stages whose MLflow store fails for a while: a real store that refuses calls as long as a test says."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.config.load import dump_config
from pipeline.errors import TrackingError
from pipeline.files import hash_file
from pipeline.stages.context import RunContext
from pipeline.stages.deliveries import Deliveries
from pipeline.stages.folder import FINISHED, Status
from pipeline.stages.tracking import StageTracking


@pytest.fixture
def stage(context: RunContext) -> Any:
    """A finished stage with one artifact, as it is handed to MLflow."""
    folder = context.folder.stage("finer")
    folder.path.mkdir(parents=True)
    rows = [{"step": step, "time": 1000.0 + step, "samples": 8, "train/loss": 1 / step} for step in (1, 2)]
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    system = {"step": 0, "time": 1001.0, "system/h1/cpu_utilization_percentage": 40.0}
    (folder.path / "system").mkdir()
    (folder.path / "system" / "h1.jsonl").write_text(json.dumps(system) + "\n")
    folder.event("resume", "resumes", step=1, steps_lost=3, workers=2)
    (folder.path / "note.txt").write_text("kept")
    context.folder.config.write_text(dump_config(context.config))
    return SimpleNamespace(
        artifacts=lambda: [(folder.path / "note.txt", None)],
        metrics=lambda result: {"best/loss": 0.5},
        finished_model=lambda status: None,
        track_inputs=lambda run_id: context.tracker.params(run_id, {"lr": 0.1}),
        register=lambda: None,
    )


@pytest.fixture
def outage(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of calls of the store's client that fail from now on, each until a test removes it."""
    failing: list[str] = []
    client = context.tracker.client

    class Unreliable:
        def __getattr__(self, name: str) -> Any:
            if name in failing or "all" in failing:
                raise ConnectionError("Max retries exceeded with url: /api (Caused by [Errno 111] Connection refused)")
            return getattr(client, name)

    monkeypatch.setattr(context.tracker, "client", Unreliable())
    context.parent_run_id = context.tracker.start("quick", run_id=None)
    monkeypatch.setattr("pipeline.stages.deliveries.RETRY_S", 0.01)
    return failing


def tracking(context: RunContext, stage: Any) -> StageTracking:
    status = Status(FINISHED, "finetune", "d", {}, started=900.0, ended=2000.0, untracked="not yet", workers=2)
    return StageTracking(context, "finer", stage, status)


def check_whole(context: RunContext, status: Status) -> None:
    """Everything is in the run, once."""
    client, run_id = context.tracker.client, str(status.mlflow_run_id)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 900_000, 2_000_000)
    assert run.data.params == {"lr": "0.1", "world_size": "2"}
    histories = {name: [m.step for m in client.get_metric_history(run_id, name)] for name in run.data.metrics}
    assert histories == {
        "train/loss": [1, 2],
        "system/h1/cpu_utilization_percentage": [0],
        "restart/steps_lost": [1],
        "restart/workers": [1],
        "best/loss": [0],
    }
    assert [item.path for item in client.list_artifacts(run_id)] == ["note.txt", "plots"]
    assert run.data.tags["minivit.config_sha256"] == hash_file(context.folder.config)
    siblings = client.search_runs(
        [context.tracker.experiment_id], f"tags.mlflow.parentRunId = '{context.parent_run_id}'"
    )
    assert len(siblings) == 1
    assert status.untracked is None


@pytest.mark.parametrize("call", ["create_run", "log_batch", "get_metric_history", "log_artifact", "set_terminated"])
def test_whatever_fails_the_next_delivery_completes_it(
    context: RunContext, stage: Any, outage: list[str], call: str
) -> None:
    one = tracking(context, stage)
    outage.append(call)
    with pytest.raises(TrackingError, match=r"sqlite.* does not answer \(Connection refused\)"):
        one.deliver()
    assert one.status.untracked
    outage.clear()
    one.deliver()
    check_whole(context, one.status)
    again = StageTracking(context, "finer", stage, one.status)  # as the next `minivit run` would
    again.deliver()
    check_whole(context, one.status)


def test_a_stage_goes_on_without_its_store_and_tells_so_once(
    context: RunContext, stage: Any, outage: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(context.progress, "say", said.append)
    monkeypatch.setattr("pipeline.stages.tracking.FLUSH_S", 0.01)
    one = tracking(context, stage)
    outage.append("all")
    with one.following():
        assert one.status.mlflow_run_id is None
        assert len(said) == 1
        outage.clear()
        while len(said) < 2:
            time.sleep(0.01)
    assert "training continues, and MLflow is brought up to date once it accepts data again" in said[0]
    assert "MLflow accepts metrics again" in said[1]
    one.deliver()
    check_whole(context, one.status)


def test_the_next_stage_does_not_wait_for_a_delivery(context: RunContext) -> None:
    allowed, sent = threading.Event(), []

    def send(number: int) -> None:
        assert allowed.wait(60)
        sent.append(number)

    slow: list[Any] = [SimpleNamespace(deliver=partial(send, number)) for number in range(2)]
    with Deliveries(context) as deliveries:
        for tracking in slow:
            deliveries.deliver(tracking)
        assert not sent
        allowed.set()
    assert sent == [0, 1]


def test_a_run_waits_for_its_store(
    context: RunContext, stage: Any, outage: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = Deliveries(context)
    outage.append("all")
    one = tracking(context, stage)
    deliveries.deliver(one)
    deliveries.wait()
    assert deliveries.undelivered == {"finer": one}
    attempts: list[int] = []

    def answers() -> bool:
        attempts.append(1)
        if len(attempts) == 3:
            outage.clear()
        return False

    monkeypatch.setattr(context.tracker, "answers", answers)
    deliveries.complete()
    assert len(attempts) == 3
    check_whole(context, one.status)


def test_a_store_that_comes_back_right_after_a_failure_is_tried_again(
    context: RunContext, stage: Any, outage: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries, one = Deliveries(context), tracking(context, stage)
    outage.append("all")
    deliveries.deliver(one)

    def answers() -> bool:
        outage.clear()
        return True

    monkeypatch.setattr(context.tracker, "answers", answers)
    deliveries.complete()
    check_whole(context, one.status)


def test_a_run_does_not_wait_for_a_store_that_answers_and_refuses(
    context: RunContext, stage: Any, outage: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = Deliveries(context)
    outage.append("log_artifact")
    deliveries.deliver(tracking(context, stage))
    monkeypatch.setattr("pipeline.stages.deliveries.RETRY_S", 60)
    with pytest.raises(TrackingError, match=r"MLflow's record of finer is incomplete"):
        deliveries.complete()


def test_a_run_does_not_wait_for_ever(context: RunContext, stage: Any, outage: list[str]) -> None:
    context.config = context.config.model_copy(
        update={"tracking": context.config.tracking.model_copy(update={"wait_s": 0.05})}
    )
    deliveries = Deliveries(context)
    outage.append("all")
    deliveries.deliver(tracking(context, stage))
    expected = r"MLflow's record of finer is incomplete; the rest is kept in runs/quick: run the same command again"
    with pytest.raises(TrackingError, match=expected):
        deliveries.complete()
    status = context.folder.stage("finer").status()
    assert status is not None
    assert (status.state, bool(status.untracked)) == (FINISHED, True)


def test_a_server_that_falls_silent_does_not_hold_up_the_end_of_a_stage(
    context: RunContext, stage: Any, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(context.progress, "say", said.append)
    monkeypatch.setattr("pipeline.tracking.patience.ANSWER_S", 2)
    monkeypatch.setattr("pipeline.tracking.patience.FIRST_ANSWER_S", 1)
    context.config = context.config.model_copy(
        update={"tracking": context.config.tracking.model_copy(update={"wait_s": 0.0})}
    )
    one, deliveries = tracking(context, stage), Deliveries(context)
    one.deliver()
    (context.folder.stage("finer").path / "metrics.jsonl").open("a").write(
        '{"step": 3, "time": 3.0, "train/loss": 1}\n'
    )
    monkeypatch.setattr(context.tracker, "client", MlflowClient(f"http://127.0.0.1:{silent_port}"))
    began = time.monotonic()
    with one.following():
        pass
    deliveries.deliver(one)
    with pytest.raises(TrackingError, match=r"finer is incomplete; .*: run the same command again to send it"):
        deliveries.complete()
    assert time.monotonic() - began < 30  # of requests of 2 s, then 1 s; with MLflow's own timeout one takes 120 s
    assert "does not answer (Read timed out); restart it; training continues" in said[0]
    assert "the stage's remaining records are kept and will be sent later" in said[1]
