"""Monocular depth estimation: metres for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.config.section import Positive, Share
from pipeline.metrics.depth import DEPTH
from pipeline.metrics.schema import Schema
from pipeline.models.heads._layers import QUANTITIES
from pipeline.models.spec import HeadSpec, ViTSpec
from pipeline.tasks._map_head import map_head
from pipeline.tasks.task import BaseTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.depth.module import DepthEstimation

HEAD = "depth_head"


class Task(BaseTask):
    """Scale-invariant log loss over measured pixels; AbsRel on depth maps at their own size selects models."""

    targets: ClassVar[tuple[str, ...]] = ("depth",)
    pipeline_tag: ClassVar[str] = "depth-estimation"
    measured: ClassVar[Schema] = DEPTH

    type: Literal["depth"] = "depth"
    head: str = Field(default="dpt", description="dpt (fuses the maps of four layers), linear or conv (3x3, ReLU, 1x1)")
    layers: Annotated[list[int], Field(min_length=1)] | None = Field(
        default=None,
        description="layers, from 0, whose maps the head reads; default: four for dpt, otherwise the last one",
    )
    head_options: dict[str, Positive] = Field(
        default_factory=dict,
        description="further settings of the head: hidden (channels of dpt and conv) and cells (outputs of linear "
        "and conv along each side of a patch)",
    )
    scale_invariance: Share = Field(
        default=0.5,
        description="how far the loss ignores that a whole image is too near or too far: 0 counts it like any other "
        "error, 1 ignores it",
    )

    @field_validator("head")
    @classmethod
    def gives_quantities(cls, name: str) -> str:
        return map_head(name, regresses=True)

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        layers = {} if self.layers is None else {"layers": self.layers}
        options: dict[str, Any] = {**layers, **self.head_options, QUANTITIES: True}
        return {HEAD: HeadSpec(self.head, 1, options)}

    def example_prediction(self, num_classes: int) -> np.ndarray:
        return np.zeros((1, 1), np.float32)

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> DepthEstimation:
        from pipeline.tasks.depth.module import DepthEstimation

        return DepthEstimation(model, self, preprocess)
