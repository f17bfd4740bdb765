from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.data import DatasetConfig
from pipeline.errors import ConfigError, DataError
from pipeline.shards.index_file import load_index
from pipeline.shards.write import ShardWriter
from pipeline.stages.probe_data import check_probed_classes, probe_sources
from pipeline.train.job import Dataset

NAMES = ("photos", "held-out")
CLASSES = [f"class {number}" for number in range(10)]


def dataset(prefix: str, classes: list[str] | None = None) -> Dataset:
    pattern = f"data/{prefix}-*.tar"
    return Dataset(DatasetConfig(shards=pattern, classes=classes), load_index(pattern))


def test_labels_are_numbers_of_the_training_classes(make_shards: Callable[..., None]) -> None:
    make_shards("train", 40, 20, CLASSES)
    make_shards("test", 20, 20, CLASSES)
    turned = dataset("test", CLASSES[::-1])
    found = probe_sources(NAMES, (dataset("train"), turned), "stages.probe.data")
    assert found.classes == CLASSES
    assert found.train.targets["class_id"].numbers == tuple(range(10))
    assert found.test.targets["class_id"].numbers == tuple(range(9, -1, -1))


def test_a_class_that_only_the_test_data_have(make_shards: Callable[..., None]) -> None:
    make_shards("train", 40, 20, CLASSES)
    make_shards("test", 20, 20, CLASSES)
    with pytest.raises(ConfigError) as caught:
        probe_sources(NAMES, (dataset("train"), dataset("test", ["clas 0", *CLASSES[1:]])), "stages.probe.data")
    assert str(caught.value).startswith(
        "stages.probe.data.test: class 'clas 0' of held-out is not among the 10 classes of photos; did you mean "
    )


def test_classes_that_the_test_data_lack_are_no_fault() -> None:
    check_probed_classes(NAMES, CLASSES, CLASSES[:4], "stages.probe.data")


def test_one_class() -> None:
    with pytest.raises(ConfigError, match=r"^stages\.probe\.data: photos has only the class 'class 0'"):
        check_probed_classes(NAMES, CLASSES[:1], CLASSES[:1], "stages.probe.data")


def test_data_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.shards.build import build_index

    monkeypatch.chdir(tmp_path)
    with ShardWriter(tmp_path / "data", "train", 10) as writer:
        writer.write("a", {"png": b"not decoded here"})
    build_index("data/train-*.tar", workers=1)
    with pytest.raises(DataError, match=r"^datasets\.photos: .* has no class_id in its index"):
        probe_sources(NAMES, (dataset("train"), dataset("train")), "stages.probe.data")
