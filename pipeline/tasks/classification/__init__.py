"""Image classification: one class per image, or a mixture of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pipeline.config.section import Rate
from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import Schema
from pipeline.models.model_spec import classifier_heads
from pipeline.models.spec import HeadSpec, ViTSpec
from pipeline.tasks.task import BaseTask, PredictOptions

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.base import TaskModule


class Task(BaseTask):
    type: Literal["classification"] = "classification"
    label_smoothing: Rate = 0.0

    measured: ClassVar[Schema] = CLASSIFICATION
    targets: ClassVar[tuple[str, ...]] = ("class_id",)
    pipeline_tag: ClassVar[str] = "image-classification"
    predict_options: ClassVar[PredictOptions] = {"top_k": int}

    def example_prediction(self, num_classes: int) -> list[tuple[str, float]]:
        return [("name", 0.5)]

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        return classifier_heads(backbone, num_classes)

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        from pipeline.tasks.classification.module import Classification

        return Classification(model, preprocess, classes, self.label_smoothing)
