"""What a task declares, without torch: its settings, and what it needs of data and model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config.task import TaskConfig
from pipeline.models import costs
from pipeline.models.spec import HeadSpec, ModelSpec, Pair, ViTSpec

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.base import TaskModule


class BaseTask(TaskConfig):
    """The base of every `Task`; its fields are the settings of the `task` section."""

    @abstractmethod
    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        """Name -> head. `num_classes` is 0 where the task's labels are of no classes."""

    def backbone_fields(self) -> dict[str, Any]:
        """Settings of a stage's `model` section that the task cannot do without."""
        return {}

    def check(self, backbone: ViTSpec) -> None:
        """Raise ModelError for settings that a backbone cannot serve, in training or in evaluation."""

    def model_spec(self, backbone: ViTSpec, num_classes: int) -> ModelSpec:
        """The model that the task trains. Raises ModelError for heads that do not fit the backbone."""
        self.check(backbone)
        return ModelSpec(backbone, self.heads(backbone, num_classes), self.type)

    def forward_flops(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Of one image in training; both sizes are (height, width) in pixels."""
        return costs.forward_flops(spec, image_size, patch)

    def encoder_tokens(self, spec: ModelSpec, grid: Pair) -> int:
        """Tokens that the encoder sees of one image of `grid` patches in training."""
        return grid[0] * grid[1] + spec.backbone.tokens.num_prefix

    @abstractmethod
    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        """The model with the task's loss, measures and predictions.

        `classes` are the names of the stage's classes; `preprocess.eval` is how evaluation resizes images.
        """


def task_of(config: TaskConfig) -> BaseTask:
    """The task that a stage's `task` section is."""
    assert isinstance(config, BaseTask)
    return config
