"""The task that finished models are evaluated as, and the data it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.task import TaskConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.metrics.schema import Schema
from pipeline.stages.data import evaluated_classes, plain_source
from pipeline.stream.source import Source
from pipeline.tasks.task import Trained, own_task, task_of
from pipeline.train.job import Dataset


def evaluated_task(asked: TaskConfig | None, models: Mapping[str, Trained], where: str) -> TaskConfig:
    """The task that models are evaluated as: `asked` if given, otherwise their own, measured as in training.

    Args:
        asked: the stage's `task` section.
        models: by name; each knows the task it was trained for.
        where: the stage's dotted path.

    Raises:
        ConfigError: a model was trained for another task, the models' tasks differ, or the settings do not fit a model.
    """
    types = {name: model.spec.task for name, model in models.items()}
    first, trained_for = next(iter(types.items()))
    wanted = asked.type if asked else trained_for
    for name, other in types.items():
        if asked and other != wanted and other not in asked.evaluates:
            raise ConfigError(f"{where}.task: found {wanted}, but {name} is a {other} model; evaluate it as that")
        if not asked and other != wanted:
            raise ConfigError(
                f"{where}.models: {name} is a {other} model, but {first} is a {wanted} model; evaluate the models of "
                "each task separately"
            )
    task = asked or own_task(models[first])
    if not task.judged_alone:
        raise ConfigError(
            f"{where}.models: {first} is a {wanted} model, which is only measured against its teacher, in validation "
            "during training; fine-tune it and evaluate that, or evaluate its features with a probe stage or "
            "`minivit evaluate --probe`"
        )
    for name, model in models.items():
        if not asked and (own := own_task(model)) != task:
            raise ConfigError(
                f"{where}.task: {name} was measured with {own.measuring_settings}, but {first} with "
                f"{task.measuring_settings}; set `task` to evaluate all of them alike, or evaluate them separately"
            )
        try:
            task_of(task).check(model.spec.backbone)
        except ModelError as error:
            raise ConfigError(f"{where}.{error} (for {name})") from None
    return task


def evaluated_data(name: str, dataset: Dataset, task: TaskConfig) -> tuple[Source, list[str]]:
    """The data with the labels that the task needs, and their classes, numbered as the model's.

    Raises DataError as `require_class_names` does.
    """
    classes = evaluated_classes(name, dataset, task.targets)
    return plain_source(name, dataset, classes, task.targets), classes


def describe_measures(schema: Schema, measured: Mapping[str, Any]) -> list[str]:
    """A model's measures in words, with 95 % intervals where they exist."""
    words, intervals = [], measured.get("intervals", {})
    for measure in schema.ranked:
        if measure.name in measured:
            text = f"{measure.words} {measure.text(measured[measure.name], 2)}"
            if interval := intervals.get(measure.name):
                text += f" ({' to '.join(measure.text(end, 2) for end in interval)})"
            words.append(text)
    return words


def tracked_measures(measures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The measures of the named models that go to MLflow."""
    return {f"test/{name}/{model}": value for model, found in measures.items() for name, value in found.items()}
