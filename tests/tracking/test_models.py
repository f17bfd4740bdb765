from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest

from pipeline.config.schema import TrackingConfig
from pipeline.models import Bundle, MiniViT, Preprocess, build_spec
from pipeline.tracking.models import FinishedModel, beats, log_model, logged_models, register
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import choose_store


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(choose_store(TrackingConfig(), tmp_path_factory.mktemp("runs"), {}, {}))


@pytest.fixture
def finished(tmp_path: Path) -> FinishedModel:
    spec = build_spec("nano", image_size=8, num_classes=2, depth=1, channels=1)
    bundle = Bundle(MiniViT.from_spec(spec).state_dict(), spec, Preprocess((0.5,), (0.5,), 1, (8, 8)), ["a", "b"], {})
    folder = bundle.save(tmp_path / "model")
    measures = {"accuracy": 0.5, "loss": 1.0}
    return FinishedModel("pretrain/nano", folder, 1, (8, 8), "digest", [("a", 0.5)], measures=measures)


def test_the_alias_goes_to_the_better_version_alone(
    tracker: Tracker, finished: FinishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for accuracy in (0.5, 0.4, 0.6):
        run_id = tracker.start("stage", run_id=None)
        model = replace(finished, measures={"accuracy": accuracy})
        for _ in range(2):  # as on a resume
            found.append(register(tracker, "shoes", run_id, "champion", model, "accuracy", "higher")[:2])
    assert found == [("1", True), ("1", True), ("2", False), ("2", False), ("3", True), ("3", True)]
    champion = tracker.client.get_model_version_by_alias("shoes", "champion")
    assert champion.tags["minivit.model"] == logged_models(tracker, run_id)[0].model_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    loaded = mlflow.pyfunc.load_model("models:/shoes@champion")
    assert len(loaded.predict(np.zeros((1, 8, 8, 1), np.uint8))) == 1
    assert (str(champion.version), champion.tags["minivit.run"], champion.run_id) == ("3", run_id, run_id)
    assert len(tracker.client.search_model_versions("name = 'shoes'")) == 3


def test_the_alias_stays_unless_both_are_judged_by_the_same_measure(tracker: Tracker, finished: FinishedModel) -> None:
    def registered(name: str, measures: dict[str, float], selects: str, why: str = "") -> bool:
        model = replace(finished, measures=measures)
        found = register(tracker, name, tracker.start("stage", run_id=None), "champion", model, selects, "higher")
        assert found.incomparable == why
        return found.has_alias

    assert registered("bags", {"accuracy": 0.5}, "accuracy")
    assert not registered("bags", {"mean_iou": 0.9}, "mean_iou", "version 1 was chosen by accuracy")
    assert not registered("bags", {"accuracy": 0.4}, "accuracy")
    assert registered("bags", {"accuracy": 0.6}, "accuracy")
    tracker.client.set_registered_model_alias("bags", "champion", "2")
    tracker.client.delete_model_version_tag("bags", "2", "minivit.metric")  # as of a version that others registered
    assert not registered("bags", {"accuracy": 0.99}, "accuracy", "version 2 records no measure")
    assert registered("hats", {"accuracy": math.nan}, "accuracy")
    assert registered("hats", {"accuracy": 0.1}, "accuracy")
    assert not registered("hats", {"accuracy": math.nan}, "accuracy", "this model has no accuracy")


def test_a_logged_model_predicts_and_is_the_only_one(
    tracker: Tracker, finished: FinishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logged again after a kill, it is the same; one that was not completed goes."""
    run_id = tracker.start("stage", run_id=None)
    half = tracker.client.create_logged_model(tracker.experiment_id, "pretrain-nano", run_id)
    tracker.client.log_metric(run_id, "val/accuracy", 0.5, timestamp=1234, step=7)
    model_id = log_model(tracker, run_id, finished)
    assert log_model(tracker, run_id, finished) == model_id != half.model_id
    assert [found.model_id for found in logged_models(tracker, run_id)] == [model_id]
    [output] = tracker.client.get_run(run_id).outputs.model_outputs
    assert output.model_id == model_id
    stored = tracker.client.list_logged_model_artifacts(model_id, "data/model")
    assert {Path(item.path).name for item in stored} == {"model.json", "model.safetensors"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    images = np.zeros((2, 12, 10, 1), np.uint8)
    [one, other] = loaded.predict(images)
    assert {name for name, _ in one} == {"a", "b"}
    assert one == other
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, -1, -1, 1)
    assert loaded.metadata.saved_input_example_info is not None
    metrics = {metric.key: metric.value for metric in tracker.client.get_logged_model(model_id).metrics}
    assert metrics == {"val/accuracy": 0.5, "val/loss": 1.0}
    [row] = tracker.client.get_metric_history(run_id, "val/accuracy")
    assert (row.value, row.timestamp, row.step) == (0.5, 1234, 7)


def test_what_beats_a_champion() -> None:
    assert beats(0.6, "0.5", "higher")
    assert not beats(0.5, "0.5", "higher")
    assert beats(0.4, "0.5", "lower")
    assert beats(0.1, None, "higher")
    assert not beats(None, "0.5", "higher")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An MLflow server that hands on artifacts, over SQLite."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/m.db", "--artifacts-destination", str(tmp_path / "kept")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@pytest.mark.integration
def test_a_server_takes_models_and_hands_them_out(
    server: str, finished: FinishedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(choose_store(TrackingConfig(uri=server), tmp_path, {}, {}))
    run_id = tracker.start("stage", run_id=None)
    model_id = log_model(tracker, run_id, finished)
    assert log_model(tracker, run_id, finished) == model_id
    assert register(tracker, "shoes", run_id, "champion", finished, "accuracy", "higher") == ("1", True, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    images = np.zeros((1, 9, 7, 1), np.uint8)
    one, other = (
        mlflow.pyfunc.load_model(uri).predict(images) for uri in (f"models:/{model_id}", "models:/shoes@champion")
    )
    assert one == other
