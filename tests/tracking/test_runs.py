from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from pipeline.config.schema import TrackingConfig
from pipeline.errors import TrackingError
from pipeline.tracking.names import TAG_PREFIX, mlflow_name
from pipeline.tracking.runs import (
    FAILED,
    FINISHED,
    LONG_PARAMS,
    MAX_PARAM_LENGTH,
    TRAINING,
    DataRead,
    Tracker,
    as_parameters,
)
from pipeline.tracking.store import choose_store, client_for, default_uri

LIMIT_S = 15.0


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("runs")
    return Tracker(choose_store(TrackingConfig(), folder, {}, {}))


def test_the_default_store_does_not_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_a_run_is_resumed_by_its_id(tracker: Tracker) -> None:
    run_id = tracker.start("quick", run_id=None)
    tracker.end(run_id, FAILED)
    assert tracker.client.get_run(run_id).info.status == "FAILED"
    assert tracker.start("quick", run_id=run_id) == run_id
    assert tracker.client.get_run(run_id).info.status == "RUNNING"
    tracker.end(run_id, FINISHED)
    info = tracker.client.get_run(run_id).info
    assert info.status == "FINISHED"
    assert info.end_time >= info.start_time


def test_a_run_that_the_store_no_longer_has_is_begun_anew(tracker: Tracker) -> None:
    deleted = tracker.start("quick", run_id=None)
    tracker.client.delete_run(deleted)
    for lost in (deleted, "0" * 32):
        assert tracker.start("quick", run_id=lost) != lost


def test_values_of_one_time_leave_one_row(tracker: Tracker) -> None:
    run_id = tracker.start("again", run_id=None)
    for at in (1000.5, 1000.5, 2000.0):
        tracker.metrics(run_id, {"best/accuracy": 0.5}, at=at)
    history = tracker.client.get_metric_history(run_id, "best/accuracy")
    assert [metric.timestamp for metric in history] == [1_000_500, 2_000_000]


def test_a_run_delivered_late_tells_when_it_was(tracker: Tracker) -> None:
    run_id = tracker.start("late", run_id=None, began=1000.0, tags={"mlflow.source.git.commit": "abc"})
    tracker.end(run_id, FINISHED, 2000.0)
    run = tracker.client.get_run(run_id)
    assert (run.info.start_time, run.info.end_time) == (1_000_000, 2_000_000)
    assert run.data.tags["mlflow.source.git.commit"] == "abc"


def test_children_know_their_parent(tracker: Tracker) -> None:
    parent = tracker.start("family", run_id=None)
    children = {tracker.start(name, run_id=None, parent=parent) for name in ("a", "b")}
    found = tracker.client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert {run.info.run_id for run in found} == children


def test_the_experiment_is_shared_by_later_trackers(tracker: Tracker) -> None:
    assert Tracker(tracker.store).experiment_id == tracker.experiment_id


def test_parameters_are_not_changed_on_resume(tracker: Tracker) -> None:
    run_id = tracker.start("params", run_id=None)
    tracker.params(run_id, {"optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}, "ema": None})
    tracker.params(run_id, {"optimizer": {"lr": 0.2}, "workers": 4})
    expected = {"optimizer.lr": "0.1", "optimizer.betas": "(0.9, 0.99)", "ema": "None", "workers": "4"}
    assert tracker.client.get_run(run_id).data.params == expected


def test_more_parameters_than_a_call_takes(tracker: Tracker) -> None:
    run_id = tracker.start("many", run_id=None)
    tracker.params(run_id, {f"p{number}": number for number in range(205)} | {"long": "x" * 9000})
    params = tracker.client.get_run(run_id).data.params
    assert len(params) == 206
    assert len(params["long"]) == MAX_PARAM_LENGTH
    kept = tracker.store.artifacts / run_id / "artifacts" / LONG_PARAMS / "long.txt"
    assert kept.read_text() == "x" * 9000


def test_names_that_mlflow_does_not_take_are_changed_and_reported(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start("names", run_id=None)
    metrics = {"class/jack-o'-lantern": 0.5, "class/jack-o_-lantern": 0.25, "samples/b@224": 2.0}
    for _ in range(2):
        tracker.metrics(run_id, metrics, step=1)
        tracker.params(run_id, {"label_map": {"drake (duck)": "duck"}, "mixture": {"b@224": {"note": "y" * 9000}}})
    tracker.dataset(run_id, DataRead("train-{000..010}?#@" * 100, "/data/x", "d" * 64, 9, TRAINING))
    run = tracker.client.get_run(run_id)
    told = {key.removeprefix(TAG_PREFIX): text for key, text in run.data.tags.items() if key.startswith(TAG_PREFIX)}
    assert {told.get(name, name): value for name, value in run.data.metrics.items()} == metrics
    params = {told.get(name, name): value for name, value in run.data.params.items()}
    assert params == {"label_map.drake (duck)": "duck", "mixture.b@224.note": "y" * MAX_PARAM_LENGTH}
    assert "class/jack-o_-lantern" not in told
    note = f"{LONG_PARAMS}/{mlflow_name('mixture.b@224.note')}.txt"
    assert (tracker.store.artifacts / run_id / "artifacts" / note).read_text() == "y" * 9000


def test_artifacts_that_cannot_be_stored(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "mlflow-artifacts").write_text("a file where MLflow wants a folder")
    store = dataclasses.replace(tracker.store, experiment="elsewhere", artifacts=tmp_path / "mlflow-artifacts")
    tracker = Tracker(store)
    (tmp_path / "pipeline.yaml").write_text("name: x")
    with pytest.raises(
        TrackingError, match=r"pipeline\.yaml cannot be stored at file://.*/mlflow-artifacts/"
    ) as caught:
        tracker.artifact(tracker.start("run", run_id=None), tmp_path / "pipeline.yaml")
    assert str(caught.value).endswith("or take another experiment with tracking.experiment=NAME")


def test_what_mlflow_refuses_is_said_in_a_sentence(tracker: Tracker) -> None:
    run_id = tracker.start("refused", run_id=None)
    tracker.params(run_id, {"a": 1})
    tracker.client.delete_run(run_id)
    with pytest.raises(TrackingError, match=r"^tracking\.uri: the MLflow store at sqlite.* refused .*deleted"):
        tracker.metrics(run_id, {"loss": 1.0})
    tracker.end(run_id, FINISHED)
    tracker.end("0" * 32, FINISHED)


def test_metrics_tags_datasets_and_artifacts(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start("all", run_id=None)
    tracker.metrics(run_id, {"test/accuracy/pretrain/nano": 0.5}, step=3)
    tracker.tags(run_id, {"git": "abc"})
    tracker.dataset(run_id, DataRead("train", "/data/train-*.tar", "d" * 64, 9, TRAINING))
    (tmp_path / "model").mkdir()
    for name in ("surgery.json", "model/model.json"):
        (tmp_path / name).write_text("{}")
    tracker.artifact(run_id, tmp_path / "surgery.json")
    tracker.artifact(run_id, tmp_path / "model", "model")
    run = tracker.client.get_run(run_id)
    assert run.data.metrics == {"test/accuracy/pretrain/nano": 0.5}
    assert run.data.tags["git"] == "abc"
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.source) == ("train", "d" * 36, "/data/train-*.tar")
    assert json.loads(used.dataset.profile) == {"num_samples": 9}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    assert (tracker.store.artifacts / run_id / "artifacts" / "surgery.json").is_file()
    assert [item.path for item in tracker.client.list_artifacts(run_id, "model")] == ["model/model.json"]


@given(
    st.recursive(
        st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=6
    ).filter(lambda value: isinstance(value, dict))
)
def test_flattening_keeps_every_leaf(value: dict) -> None:
    def leaves(value: object) -> int:
        return sum(map(leaves, value.values())) if isinstance(value, dict) else 1

    flat = as_parameters(value)
    assert len(flat) == leaves(value)
    for path, text in flat.items():
        found: object = value
        for key in path.split("."):
            assert isinstance(found, dict)
            found = found[key]
        assert str(found) == text


def test_a_store_that_does_not_answer_is_an_error_soon(silent_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        client_for(f"http://127.0.0.1:{silent_port}")
    assert time.monotonic() - began < LIMIT_S
    message = str(caught.value)
    assert message.startswith(f"tracking.uri: the MLflow store at http://127.0.0.1:{silent_port} does not answer (")
    assert "\n" not in message


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "gopher://store", "sqlite:////proc/none/mlflow.db"])
def test_a_store_that_cannot_be_is_an_error(uri: str) -> None:
    with pytest.raises(TrackingError, match=r"^tracking\.uri: the MLflow store"):
        Tracker(choose_store(TrackingConfig(uri=uri), Path("unused"), {}, {})).start("x", run_id=None)


def test_a_file_that_is_no_store_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be taken for one by its size" * 20)
    with pytest.raises(TrackingError, match="does not answer"):
        client_for(default_uri(tmp_path))


def test_two_pipelines_may_begin_at_once(tmp_path: Path) -> None:
    """Both find an empty store and make its tables."""
    program = (
        "import sys; from pathlib import Path; from pipeline.config.schema import TrackingConfig; "
        "from pipeline.tracking.runs import Tracker; from pipeline.tracking.store import choose_store; "
        "Tracker(choose_store(TrackingConfig(), Path(sys.argv[1]), {}, {})).start('x', run_id=None)"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, tmp_path], stderr=subprocess.PIPE) for _ in range(2)]
    ended = [(process.communicate()[1].decode()[-2000:], process.returncode) for process in both]
    assert [code for _, code in ended] == [0, 0], ended
    client = MlflowClient(default_uri(tmp_path))
    experiment = client.get_experiment_by_name("minivit")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_branches_record_the_same_data_at_the_same_time(tmp_path: Path) -> None:
    """MLflow inserts a data set twice where two callers meet; 20 meetings of 4 are sure to hit that."""
    tracker = Tracker(choose_store(TrackingConfig(), tmp_path, {}, {}))
    runs = [tracker.start(f"branch {number}", run_id=None) for number in range(4)]
    for meeting in range(20):
        start = threading.Barrier(len(runs))

        def record(run: str, digest: str = f"{meeting:032x}", start: threading.Barrier = start) -> None:
            start.wait()
            tracker.dataset(run, DataRead("train", "data/train-*.tar", digest, 9, TRAINING))

        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(record, runs))
    for run in runs:
        assert len(tracker.client.get_run(run).inputs.dataset_inputs) == 20
