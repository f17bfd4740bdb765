from __future__ import annotations

import unicodedata
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.config.data import DataConfig, DatasetConfig
from pipeline.config.task import task_class
from pipeline.errors import ConfigError
from pipeline.shards.index import DatasetIndex, make_index
from pipeline.shards.scan import ShardRecord
from pipeline.stages.data import evaluated_classes, plain_source, stage_data
from pipeline.stream.source import Source
from pipeline.targets.mask import Mask
from pipeline.tasks.classification import Task as Classification
from pipeline.train.job import Dataset


def dataset(*classes: str) -> Dataset:
    summary = {"missing": 0, "bad": 0, "unusable": 0, "low": 0, "high": len(classes) - 1}
    record = ShardRecord("a.tar", 10, 1000, "0" * 64, targets={"class_id": summary})
    index: DatasetIndex = make_index("data", [record], members={"class_id": ("cls",)})
    return Dataset(DatasetConfig(shards="data", classes=list(classes)), index)


DATASETS = {
    "photos": dataset("cat", "dog"),
    "sketches": dataset("dog", "house", "kitten"),
    "val": dataset("dog", "cat"),
    "odd": dataset("cat", "horse"),
    "lonely": dataset("cat"),
}


def sources(**data: Any):
    return stage_data(DATASETS, DataConfig(**data), Classification(), "stages.s")


def numbers(source: Source) -> tuple[int, ...]:
    """The stage's classes of a data set's own."""
    return source.targets["class_id"].numbers


def test_one_data_set_keeps_its_labels() -> None:
    (train,), val, classes = sources(train="photos")
    assert (train.name, train.weight, numbers(train), val, classes) == ("photos", 1, (0, 1), None, ["cat", "dog"])


def test_a_task_without_labels_has_no_classes_whatever_the_data_hold() -> None:
    class Unlabelled(Classification):
        targets: ClassVar[tuple[str, ...]] = ()

    mixture = DataConfig(mixture={"photos": {}, "lonely": {}}, val="odd")
    train, val, classes = stage_data(DATASETS, mixture, Unlabelled(), "stages.s")
    assert classes == []
    assert val is not None
    assert [source.targets for source in (*train, val)] == [{}, {}, {}]


def test_classes_of_one_name_are_one_class() -> None:
    mixture = {"photos": {"weight": 1.5}, "sketches": {"label_map": {"kitten": "cat"}, "augment": {"flip": False}}}
    (photos, sketches), val, classes = sources(mixture=mixture, val="val")
    assert classes == ["cat", "dog", "house"]
    assert (numbers(photos), numbers(sketches), numbers(val)) == ((0, 1), (1, 2, 0), (1, 0))
    assert (photos.weight, sketches.weight) == (3, 2)
    assert (photos.augment.flip, sketches.augment.flip) == (True, False)


def test_composed_and_decomposed_accents_name_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    composed, decomposed = "dög", unicodedata.normalize("NFD", "dög")
    monkeypatch.setitem(DATASETS, "linux", dataset("cat", composed))
    monkeypatch.setitem(DATASETS, "mac", dataset(decomposed, "kitten"))
    mixture = {"linux": {}, "mac": {"label_map": {"kitten": "cat", decomposed: composed}}}
    (_, mac), _, classes = sources(mixture=mixture)
    assert (classes, numbers(mac)) == (["cat", composed], (1, 0))


def test_the_validation_set_goes_through_the_same_renaming() -> None:
    mixture = {
        "photos": {"label_map": {"cat": "animal", "dog": "animal"}},
        "sketches": {"label_map": {"dog": "animal"}},
    }
    _, val, classes = sources(mixture=mixture, val="val")
    assert (classes, numbers(val)) == (["animal", "house", "kitten"], (0, 0))


def masked(*classes: str, **groups: list[str]) -> Dataset:
    """Class maps of these classes, in these groups."""
    record = ShardRecord("a.tar", 10, 1000, "0" * 64, targets={"mask": {"missing": 0, "bad": 0, "unusable": 0}})
    index = make_index("data", [record], members={"mask": ("seg.png",)})
    targets = {"mask": {"ignore": 9, "groups": groups}} if groups else {}
    return Dataset(DatasetConfig(shards="data", classes={"mask": list(classes)}, targets=targets), index)


def test_classes_of_a_mask_are_those_of_its_groups() -> None:
    scenes = masked("wall", "boot", "coat", "shirt", tops=["shirt", "coat"], feet=["boot"])
    plain = masked("tops", "feet")
    task = task_class("segmentation")()
    found = stage_data({"scenes": scenes, "plain": plain}, DataConfig(train="scenes", val="plain"), task, "stages.s")
    (train,), val, classes = found
    assert classes == ["feet", "tops"]
    assert train.targets["mask"] == Mask(("seg.png",), (-1, 0, 1, 1), 2, 9)
    assert val.targets["mask"] == Mask(("seg.png",), (1, 0), 2, 255)
    assert evaluated_classes("scenes", scenes, ["mask"]) == classes
    alone = plain_source("scenes", scenes, classes, ["mask"])
    assert alone.targets == train.targets


def test_a_group_of_a_class_that_is_none_is_named_with_its_setting() -> None:
    scenes = masked("wall", "boot", feet=["boots"])
    message = r"datasets\.scenes\.targets\.mask\.groups\.feet: 'boots' is not a class; did you mean 'boot'"
    with pytest.raises(ConfigError, match=message):
        stage_data({"scenes": scenes}, DataConfig(train="scenes"), task_class("segmentation")(), "stages.s")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": "photos", "val": "odd"}, r"^stages\.s\.data\.val: its class 'horse' is not among the 2 classes"),
        (
            {"mixture": {"photos": {"label_map": {"cta": "x"}}}},
            r"mixture\.photos\.label_map: 'cta' is not a class of photos; did you mean 'cat'",
        ),
        (
            {"mixture": {"photos": {"label_map": {"cat": "animal", "dog": "animal"}}}},
            r"^stages\.s\.data: photos has only the class 'animal', but at least two are needed;",
        ),
        (
            {"train": "lonely"},
            r"^stages\.s\.data: lonely has only the class 'cat', but at least two ",
        ),
    ],
)
def test_unknown_classes_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sources(**data)


@pytest.mark.parametrize(
    ("weights", "whole"),
    [([1, 1], [1, 1]), ([0.7, 0.3], [7, 3]), ([2, 4, 6], [1, 2, 3]), ([0.5], [1]), ([1e-1, 0.2], [1, 2])],
)
def test_weights_become_the_smallest_whole_numbers(weights: list[float], whole: list[int]) -> None:
    data = DataConfig(mixture={str(number): {"weight": weight} for number, weight in enumerate(weights)})
    assert data.weights == whole
    np.testing.assert_allclose(np.array(whole) / sum(whole), np.array(weights) / sum(weights))


def test_a_stream_has_one_data_set_or_a_mixture_of_coarse_weights() -> None:
    with pytest.raises(ValueError, match="set exactly one of"):
        DataConfig()
    with pytest.raises(ValueError, match="set exactly one of"):
        DataConfig(train="a", mixture={"b": {}})
    with pytest.raises(ValueError, match="only for 1001 samples in total"):
        DataConfig(mixture={"a": {"weight": 1000}, "b": {"weight": 1}})


def test_settings_that_name_classes_are_checked_against_those_of_the_data() -> None:
    summary = {"missing": 0, "bad": 0, "unusable": 0, "instances": 5, "left_out": 0, "keypoints": 3}
    record = ShardRecord("a.tar", 10, 1000, "0" * 64, targets={"keypoints": summary})
    index = make_index("data", [record], members={"keypoints": ("json",)}, classes={"keypoints": ["a", "b", "c"]})
    datasets = {"people": Dataset(DatasetConfig(shards="data"), index)}
    data = DataConfig(train="people")
    (source,), _, classes = stage_data(datasets, data, task_class("keypoints")(flip_pairs=[("a", "c")]), "stages.s")
    assert (classes, source.targets["keypoints"].num_keypoints) == (["a", "b", "c"], 3)
    with pytest.raises(ConfigError, match=r"^stages\.s\.task\.flip_pairs: 'd' is not a keypoint; allowed: a, b, c"):
        stage_data(datasets, data, task_class("keypoints")(flip_pairs=[("a", "d")]), "stages.s")
