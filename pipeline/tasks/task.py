"""What a task declares, without torch: its settings, and what it needs of data and model."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import ValidationError

from pipeline.config.task import TaskConfig, task_class
from pipeline.errors import ModelError
from pipeline.models import costs
from pipeline.models.spec import HeadSpec, ModelSpec, Pair, ViTSpec, whole_patches

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.base import TaskModule


class BaseTask(TaskConfig):
    """The base of every `Task`; its fields are the settings of the `task` section."""

    follows: ClassVar[bool] = False  # whether a moving average of the model teaches it; see `train.teacher`

    @abstractmethod
    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        """Name -> head. `num_classes` is 0 where the task's labels are of no classes."""

    def backbone_fields(self) -> dict[str, Any]:
        """Settings of a stage's `model` section that the task cannot do without."""
        return {}

    def check(self, backbone: ViTSpec) -> None:
        """Raise ModelError for settings that a backbone cannot serve, in training or in evaluation."""

    def model_spec(self, backbone: ViTSpec, num_classes: int, teacher: ModelSpec | None = None) -> ModelSpec:
        """The model that the task trains, with `teacher` where it is `taught_by` one.

        Raises ModelError for heads that do not fit the backbone.
        """
        self.check(backbone)
        return ModelSpec(backbone, self.heads(backbone, num_classes), self.type)

    def seen(self, image_size: Pair) -> list[tuple[int, Pair]]:
        """What training sees of a sample in a step of that size: (number of views, their height and width) by group."""
        return [(group.count, group.size or image_size) for group in self.view_groups().values()]

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise ModelError, as `setting: sentence`, for settings that do not fit the names of a stage's classes."""

    def predict_size(self, image_size: Pair) -> Pair:
        """Height and width at which predictions see images, of a model of `image_size`."""
        return next(iter(self.view_groups(evaluation=True).values())).size or image_size

    def check_teacher(
        self, student: ModelSpec, classes: Sequence[str] | None, teacher: ModelSpec, names: Sequence[str] | None
    ) -> None:
        """Raise ModelError for a teacher that a student cannot learn from.

        `classes` are the stage's, `names` those of the teacher; either is None as long as nobody knows them.
        """

    def forward_flops(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Of all views of one sample in training; both sizes are (height, width) in pixels."""
        return sum(count * costs.forward_flops(spec, size, patch) for count, size in self.seen(image_size))

    def encoder_tokens(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Tokens that the encoder sees of all views of one sample in training."""
        prefix = spec.backbone.tokens.num_prefix
        return sum(count * (prod(whole_patches(size, patch)) + prefix) for count, size in self.seen(image_size))

    @abstractmethod
    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        """The model with the task's loss, measures and predictions.

        `classes` are the names of the stage's classes; `preprocess.eval` is how evaluation resizes images.
        """


def task_of(config: TaskConfig) -> BaseTask:
    """The task that a stage's `task` section is."""
    assert isinstance(config, BaseTask)
    return config


class Trained(Protocol):
    """A model at rest, or one that will be."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def task_settings(self) -> Mapping[str, Any]:
        """By which it was measured; see `TaskConfig.measuring`."""


def own_task(model: Trained) -> BaseTask:
    """The task that a model was trained for, as it was measured. Raises `ModelError` for one that there is not."""
    try:
        return task_of(task_class(model.spec.task).model_validate_json(json.dumps(dict(model.task_settings))))
    except ValidationError as error:
        raise ModelError(f"the model's task_settings: {error}; export the model again") from None
    except ValueError as error:
        raise ModelError(f"the model's task: {str(error).removeprefix('type: ')}") from None
