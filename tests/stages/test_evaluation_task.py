from __future__ import annotations

from typing import Any, ClassVar

import pytest

from pipeline.config.data import DatasetConfig
from pipeline.config.load import parse_task
from pipeline.errors import ConfigError
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_backbone
from pipeline.shards.index import make_index
from pipeline.shards.scan import ShardRecord
from pipeline.stages.evaluation_task import evaluated_data, evaluated_task
from pipeline.tasks.classification import Task as Classification
from pipeline.train.job import Dataset


class Unlabelled(Classification):
    targets: ClassVar[tuple[str, ...]] = ()


def model(task: str, **settings: Any) -> Bundle:
    spec = ModelSpec(build_backbone("nano", image_size=32, patch_size=8), {}, task)
    return Bundle({}, spec, Preprocess((0.5,) * 3, (0.5,) * 3, 3, (32, 32)), task_settings=settings)


@pytest.mark.parametrize(
    ("inference", "fault"),
    [
        ("{size: 64, stride: 40}", "stride: found 40, which skips pixels"),
        ("{size: 33}", "size: the height 33 is not a multiple"),
    ],
)
def test_settings_that_a_model_cannot_serve_are_refused(inference: str, fault: str) -> None:
    asked = parse_task(f"{{type: segmentation, inference: {inference}}}", "--task")
    with pytest.raises(ConfigError, match=rf"^stages\.judge\.task\.inference\.{fault}.* \(for one\)$"):
        evaluated_task(asked, {"one": model("segmentation")}, "stages.judge")


@pytest.fixture
def dataset() -> Dataset:
    summary = {"missing": 0, "bad": 0, "unusable": 0, "low": 0, "high": 1}
    record = ShardRecord("a.tar", 10, 1000, "0" * 64, targets={"class_id": summary})
    index = make_index("data", [record], members={"class_id": ("cls",)})
    return Dataset(DatasetConfig(shards="data", classes=["cat", "dog"]), index)


def test_models_are_evaluated_as_what_they_were_trained_for_or_as_asked() -> None:
    types = {"pretrain": model("classification"), "finer": model("classification")}
    assert evaluated_task(None, types, "stages.judge") == Classification()
    asked = Classification(label_smoothing=0.1)
    assert evaluated_task(asked, types, "stages.judge") is asked


def test_models_are_measured_as_in_training_and_all_alike() -> None:
    windowed, whole = model("segmentation", inference={"size": [64, 32], "stride": 16}), model("segmentation")
    task = evaluated_task(None, {"one": windowed, "other": windowed}, "stages.judge")
    assert task == parse_task("{type: segmentation, inference: {size: [64, 32], stride: 16}}", "--task")
    assert evaluated_task(parse_task("{type: segmentation}", "--task"), {"one": windowed}, "x").measuring_settings == {}
    with pytest.raises(ConfigError, match=r"^judge\.task: other was measured with \{\}, but one with \{'inference'"):
        evaluated_task(None, {"one": windowed, "other": whole}, "judge")


def test_a_student_of_features_is_measured_beside_its_teacher_alone() -> None:
    with pytest.raises(ConfigError) as caught:
        evaluated_task(None, {"student": model("distillation")}, "stages.judge")
    assert str(caught.value) == (
        "stages.judge.models: student is a distillation model, which is only measured against its teacher, in "
        "validation during training; fine-tune it and evaluate that, or evaluate its features with a probe stage or "
        "`minivit evaluate --probe`"
    )


def test_models_of_other_tasks_are_refused_with_what_they_are() -> None:
    with pytest.raises(ConfigError) as caught:
        evaluated_task(Classification(), {"pretrain": model("mae")}, "stages.judge")
    assert str(caught.value) == (
        "stages.judge.task: found classification, but pretrain is a mae model; evaluate it as that"
    )
    with pytest.raises(ConfigError) as caught:
        evaluated_task(None, {"finer": model("classification"), "pretrain": model("mae")}, "stages.judge")
    assert str(caught.value) == (
        "stages.judge.models: pretrain is a mae model, but finer is a classification model; "
        "evaluate the models of each task separately"
    )


def test_labels_are_looked_at_only_where_the_task_needs_them(dataset: Dataset) -> None:
    source, classes = evaluated_data("val", dataset, Classification())
    assert (list(source.targets), classes) == (["class_id"], ["cat", "dog"])
    source, classes = evaluated_data("val", dataset, Unlabelled())
    assert (list(source.targets), classes) == ([], [])


def test_a_task_on_the_command_line_is_read_as_in_a_file() -> None:
    assert parse_task("{type: classification, label_smoothing: 0.1}", "--task") == Classification(label_smoothing=0.1)
    for text, sentence in (
        ("{type: clasification}", "--task: type: found 'clasification', did you mean 'classification'? Allowed: "),
        ("{smoothing: 1}", "--task: smoothing: unknown key, did you mean 'label_smoothing'? Allowed: type, "),
        ("{label_smoothing: 2}", "--task: label_smoothing: found 2, expected a number from 0 below 1."),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_task(text, "--task")
        assert str(caught.value).startswith(sentence)
