from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.load import dump_config, load_config, parse_config
from pipeline.config.task import TaskConfig, task_class, task_types
from pipeline.config.train_stage import TrainStage
from pipeline.config.views import ViewGroup
from pipeline.errors import ConfigError
from pipeline.tasks.classification import Task as Classification


def task_of(raw: dict[str, Any], section: Any) -> TaskConfig:
    raw["stages"]["pretrain"]["task"] = section
    stage = parse_config(raw, "c.yaml").stages["pretrain"]
    assert isinstance(stage, TrainStage)
    return stage.task


def test_a_section_is_the_task_that_its_type_names(raw: dict[str, Any]) -> None:
    expected = Classification(label_smoothing=0.2)
    assert task_of(raw, {"type": "classification", "label_smoothing": 0.2}) == expected
    assert task_of(raw, {"label_smoothing": 0.2}) == expected
    assert task_of(raw, {}) == Classification()


def test_every_type_has_its_own_name_and_declares_what_it_measures() -> None:
    assert "classification" in task_types()
    for name in task_types():
        found = task_class(name)()
        assert found.type == name
        assert found.measured.selected.name in found.measured.names


def test_settings_of_the_task_survive_a_file(raw: dict[str, Any], tmp_path: Any) -> None:
    raw["stages"]["pretrain"]["task"] = {"label_smoothing": 0.3}
    config = parse_config(raw, "c.yaml")
    path = tmp_path / "written.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    changed = load_config(path, ["stages.finetune.task.label_smoothing=0.4"])
    stage = changed.stages["finetune"]
    assert isinstance(stage, TrainStage)
    assert stage.task == Classification(label_smoothing=0.4)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"type": "classificaton"}, "task.type: found 'classificaton', did you mean 'classification'? Allowed: "),
        ({"type": 3}, "task.type: found 3, allowed: classification"),
        ({"label_smoothing": 1.5}, "task.label_smoothing: found 1.5, expected a number from 0 below 1"),
        ({"label_smoothing": "0.1"}, "task.label_smoothing: found '0.1', expected a number"),
        ({"smoothing": 0.1}, "task.smoothing: unknown key, did you mean 'label_smoothing'? Allowed: type, "),
        ("classification", "task: found 'classification', expected a section with a type"),
    ],
)
def test_wrong_tasks_are_refused(raw: dict[str, Any], section: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        task_of(raw, section)
    assert str(caught.value).startswith(f"c.yaml: stages.pretrain.{sentence}")


class Fixed(Classification):
    """Labels that cannot be mixed."""

    def unmixable(self) -> str | None:
        return "the mask that the task drawing learns from cannot be mixed"


class Several(Classification):
    def view_groups(self, *, evaluation: bool = False) -> dict[str, ViewGroup]:
        return {"global": ViewGroup(2), "local": ViewGroup(4, (8, 8))}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            {"train": "a", "augment": {"mixup": 0.8}},
            "data.augment.mixup: found 0.8, but the mask ",
        ),
        (
            {"mixture": {"a": {}, "b": {"augment": {"cutmix": 1.0}}}},
            "data.mixture.b.augment.cutmix: found 1.0, but the mask that the task drawing learns from cannot be mixed; "
            "set mixup and cutmix to 0",
        ),
        ({"train": "a"}, None),
    ],
)
def test_mixing_is_refused_where_labels_cannot_be_mixed(data: dict[str, Any], sentence: str | None) -> None:
    stage = {"type": "pretrain", "model": {"variant": "nano"}, "duration": "1 steps", "global_batch_size": 64}
    assert TrainStage.model_validate({**stage, "data": data, "task": Classification()})
    if sentence is None:
        assert TrainStage.model_validate({**stage, "data": data, "task": Fixed()})
        return
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        TrainStage.model_validate({**stage, "data": data, "task": Fixed()})


def test_samples_of_several_views_cannot_be_mixed() -> None:
    assert Classification().unmixable() is None
    assert Several().unmixable() == "the task classification sees several views of each sample, which cannot be mixed"


def test_a_loss_that_compares_samples_needs_two(raw: dict[str, Any]) -> None:
    raw["stages"]["pretrain"] |= {"global_batch_size": 1}
    with pytest.raises(ConfigError, match="global_batch_size: found 1, but the task clip compares samples"):
        task_of(raw, {"type": "clip"})


def test_what_trains_nothing_is_no_training_task(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"task.type: found zero_shot, which cannot be trained; train with clip"):
        task_of(raw, {"type": "zero_shot"})
