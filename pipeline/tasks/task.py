"""What a task declares, without torch: its settings, and what it needs of data and model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config.task import TaskConfig

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.base import TaskModule


class BaseTask(TaskConfig):
    """The base of every `Task`; its fields are the settings of the `task` section."""

    @abstractmethod
    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        """The model with the task's loss, measures and predictions.

        `classes` are the names of the stage's classes; `preprocess.eval` is how evaluation resizes images.
        """


def task_of(config: TaskConfig) -> BaseTask:
    """The task that a stage's `task` section is."""
    assert isinstance(config, BaseTask)
    return config
