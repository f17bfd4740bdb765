"""What finished models are evaluated as, and the data that it takes."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.task import TaskConfig, task_class
from pipeline.errors import ConfigError, ModelError
from pipeline.models.spec import ModelSpec
from pipeline.stages.data import evaluated_classes, plain_source
from pipeline.stream.source import Source
from pipeline.tasks.task import task_of
from pipeline.train.job import Dataset


def evaluated_task(asked: TaskConfig | None, models: Mapping[str, ModelSpec], where: str) -> TaskConfig:
    """The task that models are evaluated as: the one `asked` for, or else their own with its default settings.

    Args:
        asked: the stage's `task` section.
        models: name -> spec, which says what task it was trained for.
        where: the stage's dotted path.

    Raises:
        ConfigError: a model was trained for another task, or they for different ones, or the settings do not fit one.
    """
    types = {name: spec.task for name, spec in models.items()}
    first, trained_for = next(iter(types.items()))
    wanted = asked.type if asked else trained_for
    for name, other in types.items():
        if other != wanted and asked:
            raise ConfigError(f"{where}.task: found {wanted}, but {name} is a {other} model; evaluate it as that")
        if other != wanted:
            raise ConfigError(
                f"{where}.models: {name} is a {other} model, but {first} is a {wanted} model; "
                "evaluate the models of each task by themselves"
            )
    task = asked or task_class(wanted)()
    for name, spec in models.items():
        try:
            task_of(task).check(spec.backbone)
        except ModelError as error:
            raise ConfigError(f"{where}.{error} (for {name})") from None
    return task


def evaluated_data(name: str, dataset: Dataset, task: TaskConfig) -> tuple[Source, list[str]]:
    """The data with the labels that the task needs, and the classes of these, whose numbers are the model's.

    Raises DataError as `class_names` does.
    """
    classes = evaluated_classes(name, dataset, task.targets)
    return plain_source(name, dataset, classes, task.targets), classes
