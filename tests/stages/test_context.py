from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.data import DatasetConfig
from pipeline.config.load import parse_config
from pipeline.errors import DataError
from pipeline.shards.index_file import load_index
from pipeline.stages.context import absolute, open_datasets, require_class_names, tracking_store
from pipeline.stages.folder import RunFolder
from pipeline.train.job import Dataset

KINDS = ["class_id"]


@pytest.fixture
def dataset(make_shards: Callable[..., None]) -> Dataset:
    make_shards("train", 30, 10, None)
    return Dataset(DatasetConfig(shards="data/train-*.tar"), load_index("data/train-*.tar"))


def with_classes(dataset: Dataset, classes: list[str]) -> Dataset:
    return Dataset(dataset.config.model_copy(update={"classes": classes}), dataset.index)


def test_local_shards_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(DatasetConfig(shards="data/a.tar")).shards == str(tmp_path / "data/a.tar")
    assert absolute(DatasetConfig(shards=f"{tmp_path}/a.tar")).shards == f"{tmp_path}/a.tar"
    assert absolute(DatasetConfig(shards="s3://bucket/a.tar")).shards == "s3://bucket/a.tar"


def test_labels_name_themselves_where_nobody_does(dataset: Dataset) -> None:
    assert require_class_names("train", dataset, KINDS) == {"class_id": [str(label) for label in range(10)]}


def test_the_index_names_classes_and_the_config_comes_first(make_shards: Callable[..., None]) -> None:
    names = [f"class {label}" for label in range(10)]
    make_shards("train", 30, 10, names)
    dataset = Dataset(DatasetConfig(shards="data"), load_index("data"))
    assert require_class_names("train", dataset, KINDS) == {"class_id": names}
    assert require_class_names("train", with_classes(dataset, list("abcdefghijk")), KINDS) == {
        "class_id": list("abcdefghijk")
    }


def test_a_label_outside_the_classes_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"^datasets\.train: .*labels up to 9, but there are 9 classes \(0 to 8\)"):
        require_class_names("train", with_classes(dataset, list("abcdefghi")), KINDS)


def test_every_dataset_is_opened(make_shards: Callable[..., None], raw: dict[str, Any]) -> None:
    make_shards("train", 30, 10, None)
    make_shards("test", 8, 8, None)
    for settings in raw["datasets"].values():
        del settings["make"]
    datasets = open_datasets(parse_config(raw, "c"))
    assert {name: dataset.index.num_samples for name, dataset in datasets.items()} == {"train": 30, "test": 8}
    assert all(Path(dataset.config.shards).is_absolute() for dataset in datasets.values())


def test_two_classes_of_one_name_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"^datasets\.train: .* names classes 0 and 9 both 'a', so they would merge"):
        require_class_names("train", with_classes(dataset, list("abcdefghia")), KINDS)


def test_the_environment_and_the_record_name_the_store(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["runs_dir"] = str(tmp_path)
    config = parse_config(raw, "c")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    store = tracking_store(config)
    assert (store.uri, store.named_by) == ("http://mlflow.example:5000", "MLFLOW_TRACKING_URI")
    RunFolder(tmp_path / config.name).write_record(store.record)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert (tracking_store(config).uri, tracking_store(config).named_by) == (store.uri, "the run's record")
