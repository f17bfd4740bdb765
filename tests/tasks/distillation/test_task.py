from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.errors import ConfigError, ModelError
from pipeline.models.model_costs import count_parameters, forward_flops
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_backbone, build_spec
from pipeline.tasks.distillation import PROJECTION, Task

STUDENT = build_backbone("nano", image_size=28, channels=1)
TEACHER = build_spec("micro", image_size=28, channels=1, num_classes=10)


def test_answers_need_labels_and_features_none() -> None:
    for signal, kinds, selects in (("hard", ("class_id",), "accuracy"), ("features", (), "loss")):
        task = Task(teacher="./t", signal=signal)
        assert (task.targets, task.measured.selects) == (kinds, selects)
        assert task.unmixable() is None


def test_a_student_of_answers_is_a_classifier_with_dist() -> None:
    task = Task(teacher="./t", signal="hard")
    assert task.backbone_fields() == {"dist_token": True}
    backbone = build_backbone("nano", image_size=28, channels=1, dist_token=True)
    assert task.model_spec(backbone, 10, TEACHER) == ModelSpec.classifier(backbone, 10)
    assert Task(signal="soft", dist_token=False).backbone_fields() == {"dist_token": False}


def test_a_student_of_features_has_a_head_as_wide_as_the_teacher() -> None:
    task = Task(teacher="./t")
    spec = task.model_spec(STUDENT, 0, TEACHER)
    assert (spec.task, spec.heads[PROJECTION].outputs) == ("distillation", 96)
    assert count_parameters(spec) - count_parameters(ModelSpec(STUDENT, {})) == 2 * 64 + 65 * 96
    plain = forward_flops(ModelSpec(STUDENT, {}), (28, 28), (4, 4))
    assert task.forward_flops(spec, (28, 28), (4, 4)) == plain + 2 * 50 * 64 * 96


@pytest.mark.parametrize(
    ("settings", "teacher", "sentence"),
    [
        ({}, {"channels": 3}, "takes images of 3 channels, but the student's have 1; set model.channels to 3"),
        ({}, {"class_token": False}, "has no class token to learn from; set tokens: "),
        ({"signal": "soft"}, {"num_classes": 9}, "its 9 classes have no names, but the student has 10 classes"),
    ],
)
def test_teachers_that_do_not_fit(settings: dict[str, Any], teacher: dict[str, Any], sentence: str) -> None:
    task = Task(teacher="./t", **settings)
    other = build_spec("micro", **{"image_size": 28, "channels": 1, "num_classes": 10, **teacher})
    student = task.model_spec(build_backbone("nano", image_size=28, channels=1, **task.backbone_fields()), 10, other)
    with pytest.raises(ModelError, match=sentence):
        task.check_teacher(student, [str(number) for number in range(10)], other, None)


def test_a_teacher_without_classes_has_no_answers() -> None:
    task = Task(teacher="./t", signal="hard")
    backbone = build_backbone("nano", image_size=28, channels=1, dist_token=True)
    dense = ModelSpec(TEACHER.backbone, {}, "mae")
    with pytest.raises(ModelError, match="is a mae model that predicts no classes; set signal: features"):
        task.check_teacher(task.model_spec(backbone, 10, dense), None, dense, None)
    features = Task(teacher="./t")
    features.check_teacher(features.model_spec(STUDENT, 0, dense), [], dense, None)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({}, r"stages\.a\.task\.teacher: missing; set it to a stage, "),
        ({"teacher": "b", "temperature": 0.0}, r"stages\.a\.task\.temperature: found 0\.0, expected a number above 0"),
        ({"teacher": "b", "tokens": ["cls", "cls"]}, r"stages\.a\.task\.tokens: .*expected patches, cls or both"),
        ({"teacher": "gone"}, r"stages\.a\.task\.teacher: found 'gone', which is not a stage, a path to an export"),
        ({"teacher": "a"}, r"stages\.a\.task\.teacher: the stages form a cycle, a -> a"),
    ],
)
def test_wrong_settings(task: dict[str, Any], sentence: str) -> None:
    stage = {"type": "pretrain", "data": {"train": "d"}, "duration": "1 steps", "global_batch_size": 64}
    raw = {
        "name": "n",
        "datasets": {"d": {"shards": "d"}},
        "stages": {
            name: {**stage, "model": {"variant": "nano", "image_size": 28}, "task": settings}
            for name, settings in {"a": {"type": "distillation", **task}, "b": {"type": "classification"}}.items()
        },
    }
    with pytest.raises(ConfigError, match=sentence):
        parse_config(raw, "c")
