from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.config.schema import TrackingConfig
from pipeline.credentials import shown
from pipeline.errors import TrackingError
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import (
    DEFAULT,
    RECORD,
    TrackingStore,
    check_store,
    choose_store,
    default_uri,
    describe_store,
    sqlite_path,
)

SERVER = "http://mlflow.example:5000"


def store_in(folder: Path, **settings: str) -> TrackingStore:
    return choose_store(TrackingConfig(**settings), folder, {}, {})


@pytest.mark.parametrize(
    ("settings", "environment", "record", "expected"),
    [
        ({}, {}, {}, (None, DEFAULT)),
        ({}, {"MLFLOW_TRACKING_URI": SERVER}, {}, (SERVER, "MLFLOW_TRACKING_URI")),
        ({}, {"MLFLOW_TRACKING_URI": ""}, {}, (None, DEFAULT)),
        ({"uri": "http://a"}, {"MLFLOW_TRACKING_URI": SERVER}, {}, ("http://a", "tracking.uri")),
        ({}, {}, {"tracking_uri": SERVER, "tracking_uri_from": "MLFLOW_TRACKING_URI"}, (SERVER, RECORD)),
        ({}, {}, {"tracking_uri": SERVER, "tracking_uri_from": RECORD}, (SERVER, RECORD)),
        # The folder has been moved with its store in it.
        ({}, {}, {"tracking_uri": "sqlite:////old/mlflow.db", "tracking_uri_from": DEFAULT}, (None, DEFAULT)),
        ({}, {"MLFLOW_TRACKING_URI": "http://b"}, {"tracking_uri": SERVER, "tracking_uri_from": "x"}, ("http://b",)),
    ],
)
def test_who_names_the_store(
    tmp_path: Path,
    settings: dict[str, str],
    environment: dict[str, str],
    record: dict[str, str],
    expected: tuple[str | None, ...],
) -> None:
    store = choose_store(TrackingConfig(**settings), tmp_path, record, environment)
    assert (store.uri, store.named_by)[: len(expected)] == (expected[0] or default_uri(tmp_path), *expected[1:])


def test_a_relative_store_does_not_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_in(tmp_path, uri="sqlite:///my.db").uri == f"sqlite:///{tmp_path}/my.db"


def test_who_names_the_experiment(tmp_path: Path) -> None:
    both = {"MLFLOW_EXPERIMENT_NAME": "vits", "MLFLOW_EXPERIMENT_ID": "7"}

    def chosen(environment: dict[str, str], **settings: str) -> tuple[str, str | None]:
        store = choose_store(TrackingConfig(**settings), tmp_path, {}, environment)
        return store.experiment, store.experiment_id

    assert chosen({}) == ("minivit", None)
    assert chosen(both) == ("vits", None)
    assert chosen(both, experiment="mine") == ("mine", None)
    assert chosen({"MLFLOW_EXPERIMENT_ID": "7"}) == ("minivit", "7")


def connected(store: TrackingStore) -> None:
    """A tracker connects on its first use."""
    assert Tracker(store).experiment_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that holds a store."""
    folder = tmp_path_factory.mktemp("runs")
    connected(store_in(folder))
    return folder


def test_an_experiment_by_its_id(folder: Path) -> None:
    number = Tracker(store_in(folder, experiment="vits")).experiment_id
    by_id = choose_store(TrackingConfig(), folder, {}, {"MLFLOW_EXPERIMENT_ID": number})
    assert Tracker(by_id).experiment_id == number
    with pytest.raises(TrackingError, match=r"^MLFLOW_EXPERIMENT_ID: .* has no experiment 999"):
        connected(dataclasses.replace(by_id, experiment_id="999"))


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(folder: Path) -> None:
    store = store_in(folder, experiment="old")
    number = Tracker(store).experiment_id
    client = MlflowClient(store.uri)
    client.delete_experiment(number)
    expected = f"`MLFLOW_TRACKING_URI={store.uri} mlflow experiments restore --experiment-id {number}`"
    for refuse in (check_store, connected):
        with pytest.raises(TrackingError, match=r"^tracking\.experiment: .*'old' was deleted") as caught:
            refuse(store)
        assert expected in str(caught.value)
        assert "tracking.experiment=NAME" in str(caught.value)
    client.restore_experiment(number)
    check_store(store)


def test_a_look_at_a_store_makes_nothing(tmp_path: Path) -> None:
    check_store(store_in(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


def test_a_look_finds_a_store_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match=r"^tracking\.uri: the MLflow store .*/file/mlflow\.db cannot be written"):
        check_store(store_in(tmp_path / "file"))
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    with pytest.raises(
        TrackingError, match=r"^MLFLOW_TRACKING_URI: the MLflow store at http://127\.0\.0\.1:9 does not"
    ):
        check_store(choose_store(TrackingConfig(), tmp_path, {}, environment))
    with pytest.raises(TrackingError, match=r"^tracking\.uri: the MLflow store at \./mlruns does not answer \("):
        check_store(store_in(tmp_path, uri="./mlruns"))


def test_a_look_finds_artifacts_without_a_place(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expected = r"^tracking\.uri: an artifact cannot be stored at .*/file, where the experiment 'lost' keeps its "
    known = dataclasses.replace(store_in(folder, experiment="lost"), artifacts=tmp_path / "file")
    fresh = dataclasses.replace(known, uri=default_uri(tmp_path))
    with pytest.raises(TrackingError, match=expected):
        check_store(fresh)
    connected(known)
    with pytest.raises(TrackingError, match=expected):
        check_store(dataclasses.replace(known, artifacts=tmp_path))


@pytest.mark.parametrize("name", ["a#b?c=d&e f", "100%20[x]*;ä@:+"])
def test_any_folder_may_hold_a_store(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    tracker = Tracker(store_in(folder))
    run_id = tracker.start("run", run_id=None)
    (tmp_path / "note.txt").write_text("x")
    tracker.artifact(run_id, tmp_path / "note.txt")
    assert sqlite_path(tracker.uri) == folder / "mlflow.db"
    assert (folder / "mlflow.db").is_file()
    assert (folder / "mlflow-artifacts" / run_id / "artifacts" / "note.txt").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {name, "note.txt"}
    assert [item.path for item in MlflowClient(tracker.uri).list_artifacts(run_id)] == ["note.txt"]


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    uri = "http://me:secret@mlflow.example:5000/x"
    store = choose_store(TrackingConfig(), tmp_path, {}, {"MLFLOW_TRACKING_URI": uri})
    assert shown(uri) == "http://me:***@mlflow.example:5000/x"
    assert describe_store(store) == (
        "MLflow store: named by MLFLOW_TRACKING_URI, experiment 'minivit'; "
        "see it at http://me:***@mlflow.example:5000/x"
    )
    assert store.record["tracking_uri"] == shown(uri)


def test_an_address_that_is_no_url_is_a_sentence(tmp_path: Path) -> None:
    store = choose_store(TrackingConfig(uri="http://[::1"), tmp_path, {}, {})
    with pytest.raises(TrackingError, match=r"^tracking\.uri: the MLflow store at http://\[::1 does not answer"):
        check_store(store)
