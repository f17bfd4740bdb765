"""SimMIM (Xie et al. 2022): pretraining without labels by predicting the pixels of patches replaced by [MASK]."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.section import Positive
from pipeline.errors import ModelError
from pipeline.metrics.schema import LOSS, Schema
from pipeline.models.mask_ratio import num_masked
from pipeline.models.spec import HeadSpec, whole_patches
from pipeline.tasks.task import BaseTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.models.model_spec import ModelSpec
    from pipeline.models.spec import Pair, ViTSpec
    from pipeline.tasks.base import TaskModule


class Task(BaseTask):
    type: Literal["simmim"] = "simmim"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.6, description="share of the patches that [MASK] tokens replace"
    )
    mask_unit: Positive = Field(
        default=1, description="patches along each side of the squares that are masked together"
    )
    norm_pixels: bool = Field(default=False, description="normalise the targets of each patch to mean 0 and variance 1")

    measured: ClassVar[Schema] = Schema((LOSS,), "loss")

    def check(self, backbone: ViTSpec) -> None:
        if self.mask_unit >= max(backbone.grid):
            raise ModelError(
                f"task.mask_unit: found {self.mask_unit}, so a single square covers all {backbone.grid[0]} x "
                f"{backbone.grid[1]} patches, and every image would be masked alike; use less than {max(backbone.grid)}"
            )

    def backbone_fields(self) -> dict[str, Any]:
        return {"mask_token": True}

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        return {"pixel_head": HeadSpec("simmim")}

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        from pipeline.tasks.simmim.module import SimMIM

        return SimMIM(model, preprocess, self.mask_ratio, self.mask_unit, self.norm_pixels)

    def forward_flops(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Operations of the encoder on all patches, and of the head on the masked ones."""
        from pipeline.models.costs import backbone_flops

        backbone = spec.backbone
        masked = num_masked(prod(whole_patches(image_size, patch)), self.mask_ratio)
        head = 2 * masked * backbone.embed_dim * backbone.channels * prod(patch)
        return backbone_flops(backbone, image_size, patch) + head
