"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.config.section import Positive, Rate
from pipeline.config.views import ViewGroup
from pipeline.errors import ModelError
from pipeline.metrics.iou import SEGMENTATION
from pipeline.metrics.schema import Schema
from pipeline.models.spec import HeadSpec, ViTSpec
from pipeline.tasks._inference_size import InferenceSize
from pipeline.tasks._map_head import map_head
from pipeline.tasks.task import BaseTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.segmentation.module import Segmentation

HEAD = "seg_head"


class Inference(InferenceSize):
    """Input size and sliding windows in validation, evaluation and prediction."""

    stride: Positive | None = Field(
        default=None,
        description="pixels between windows of the model's size, down to whole patches, on images of `size`; overlaps "
        "are averaged; default: no windows",
    )

    def check(self, backbone: ViTSpec) -> None:
        """As `InferenceSize.check`, and raise `ModelError` if windows would leave gaps or have nowhere to slide."""
        super().check(backbone)
        window = min(backbone.image_size)
        if self.stride is not None and self.size is None:
            raise ModelError(
                "task.inference.stride: windows have the model's size, so they only slide over larger images; set "
                "task.inference.size, too"
            )
        if self.stride is not None and self.stride > window:
            raise ModelError(
                f"task.inference.stride: found {self.stride}, which skips pixels between windows of {window} pixels; "
                f"use at most {window}"
            )


class Task(BaseTask):
    """Cross-entropy over labelled pixels; mean IoU on labels at their own size selects models."""

    targets: ClassVar[tuple[str, ...]] = ("mask",)
    pipeline_tag: ClassVar[str] = "image-segmentation"
    measuring: ClassVar[frozenset[str]] = frozenset({"inference"})
    measured: ClassVar[Schema] = SEGMENTATION

    type: Literal["segmentation"] = "segmentation"
    head: str = Field(
        default="linear", description="linear, conv (3x3, ReLU, 1x1), dpt or mask_transformer (Segmenter)"
    )
    layers: Annotated[list[int], Field(min_length=1)] | None = Field(
        default=None, description="layers, from 0, whose maps the head reads; default: the last one"
    )
    head_options: dict[str, Positive] = Field(
        default_factory=dict,
        description="further settings of the head: cells (outputs of linear and conv along each side of a patch, for "
        "finer borders), hidden (channels of conv and dpt) and depth (of mask_transformer)",
    )
    label_smoothing: Rate = 0.0
    inference: Inference = Inference()

    @field_validator("head")
    @classmethod
    def gives_maps(cls, name: str) -> str:
        return map_head(name)

    def view_groups(self, *, evaluation: bool = False) -> dict[str, ViewGroup]:
        return self.inference.view_groups(evaluation=evaluation)

    def check(self, backbone: ViTSpec) -> None:
        self.inference.check(backbone)

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        layers = {} if self.layers is None else {"layers": self.layers}
        options: dict[str, Any] = {**layers, **self.head_options}
        return {HEAD: HeadSpec(self.head, num_classes, options)}

    def example_prediction(self, num_classes: int) -> np.ndarray:
        return np.zeros((1, 1), np.uint8 if num_classes <= 256 else np.int16)

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> Segmentation:
        from pipeline.tasks.segmentation.module import Segmentation

        return Segmentation(model, self, classes, preprocess)
