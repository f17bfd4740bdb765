"""A task's declarations, without torch: its settings, and its requirements for data and model."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from pydantic import ValidationError

from pipeline.config.task import TaskConfig, task_class
from pipeline.errors import ModelError
from pipeline.models import model_costs
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec, Pair, ViTSpec, whole_patches

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.base import TaskModule

# Types of a task's options of predictions, by name; a list has an entry for each image.
PredictOptions = Mapping[str, type]


class BaseTask(TaskConfig):
    """The base of every `Task`; its fields are the settings of the `task` section.

    A task declares at least `type`, `measured`, `targets` unless images suffice, `heads`, `module`, and
    `example_prediction` unless it predicts features; `TaskConfig` has the rest of what it can declare.
    """

    follows: ClassVar[bool] = False  # whether the model has a moving-average teacher; see `train.teacher`
    predict_options: ClassVar[PredictOptions] = {}

    @abstractmethod
    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        """Name -> head. `num_classes` is the number of the stage's classes; 0 if the task's labels have no classes.

        Names are prefixes of the model's tensors. A later stage copies a head only to a head of the same name and kind.
        """

    def backbone_fields(self) -> dict[str, Any]:
        """Settings of a stage's `model` section that the task requires."""
        return {}

    def check(self, backbone: ViTSpec) -> None:
        """Raise ModelError for settings that the backbone does not support, in training or evaluation."""

    def starting_from(self, source: ModelSpec) -> Self:
        """The task with settings that it leaves out, such as a head's shape, taken from the model it starts from.

        Raises ModelError, as `setting: sentence`, for settings that contradict that model.
        """
        return self

    def model_spec(self, backbone: ViTSpec, num_classes: int, teacher: ModelSpec | None = None) -> ModelSpec:
        """The model that the task trains; `teacher` is given if the task has `taught_by`.

        Raises ModelError for heads that do not fit the backbone.
        """
        self.check(backbone)
        return ModelSpec(backbone, self.heads(backbone, num_classes), self.type)

    def seen(self, image_size: Pair) -> list[tuple[int, Pair]]:
        """A sample's views in a training step of this size: (number of views, their (height, width)) by group."""
        return [(group.count, group.size or image_size) for group in self.view_groups().values()]

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise ModelError, as `setting: sentence`, for settings that do not fit a stage's class names."""

    def predict_size(self, image_size: Pair) -> Pair:
        """Input size of predictions, (height, width), for a model of `image_size`."""
        return next(iter(self.view_groups(evaluation=True).values())).size or image_size

    def example_prediction(self, num_classes: int) -> Any:
        """An invented prediction for one image, with the types of real ones; default: features."""
        return [0.0]

    def check_teacher(
        self, student: ModelSpec, classes: Sequence[str] | None, teacher: ModelSpec, names: Sequence[str] | None
    ) -> None:
        """Raise ModelError for a teacher that a student cannot learn from.

        `classes` are the class names of the stage, `names` those of the teacher; either is None while unknown.
        """

    def forward_flops(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Forward operations for all views of a sample in training; both sizes are (height, width) in pixels."""
        return sum(count * model_costs.forward_flops(spec, size, patch) for count, size in self.seen(image_size))

    def encoder_tokens(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Number of encoder tokens for all views of one sample in training."""
        prefix = spec.backbone.tokens.num_prefix
        return sum(count * (prod(whole_patches(size, patch)) + prefix) for count, size in self.seen(image_size))

    @abstractmethod
    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        """The model with the task's loss, measures and predictions.

        `classes` are the stage's class names, none if its labels have no classes; `preprocess.eval` defines how
        evaluation resizes images.
        """


def task_of(config: TaskConfig) -> BaseTask:
    """The task of a stage's `task` section, as its actual type."""
    assert isinstance(config, BaseTask)
    return config


class Trained(Protocol):
    """A trained model or the description of one, such as a bundle."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def task_settings(self) -> Mapping[str, Any]:
        """The settings that it was measured with; see `TaskConfig.measuring`."""


def own_task(model: Trained) -> BaseTask:
    """The task that a model was trained for, with its measuring settings. Raises `ModelError` for an unknown task."""
    try:
        return task_of(task_class(model.spec.task).model_validate_json(json.dumps(dict(model.task_settings))))
    except ValidationError as error:
        raise ModelError(f"the model's task_settings: {error}; export the model again") from None
    except ValueError as error:
        raise ModelError(f"the model's task: {str(error).removeprefix('type: ')}") from None
