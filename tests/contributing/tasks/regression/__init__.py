"""Regression: one number per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.config.section import Positive
from pipeline.metrics.rank_correlation import REGRESSION
from pipeline.metrics.schema import Schema
from pipeline.models.spec import HeadSpec, ViTSpec
from pipeline.tasks.task import BaseTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.base import TaskModule


class Task(BaseTask):
    targets: ClassVar[tuple[str, ...]] = ("rating",)
    measured: ClassVar[Schema] = REGRESSION

    type: Literal["regression"] = "regression"
    hidden: Positive = Field(default=16, description="width between the head's two layers")

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        return {"value_head": HeadSpec("two_layers", 1, {"hidden": self.hidden})}

    def example_prediction(self, num_classes: int) -> float:
        return 0.0

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        from pipeline.tasks.regression.module import Regression

        return Regression(model, preprocess)
