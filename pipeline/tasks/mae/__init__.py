"""Masked autoencoders (He et al. 2022): pretraining without labels by predicting the pixels of masked patches."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.section import Positive, Section
from pipeline.errors import ModelError
from pipeline.metrics.schema import LOSS, Schema
from pipeline.models.mask_ratio import num_masked
from pipeline.models.spec import whole_patches
from pipeline.tasks.task import BaseTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.models.model_spec import ModelSpec
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec
    from pipeline.tasks.base import TaskModule


class DecoderConfig(Section):
    """The light transformer that predicts pixels; fine-tuning drops it."""

    dim: Annotated[int, Field(gt=0, multiple_of=4)] | None = Field(
        default=None, description="width; default: half the encoder's"
    )
    depth: Positive | None = Field(default=None, description="layers; default: a third of the encoder's")


class Task(BaseTask):
    type: Literal["mae"] = "mae"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.75, description="share of the patches that the encoder does not see"
    )
    norm_pixels: bool = Field(default=True, description="normalise the targets of each patch to mean 0 and variance 1")
    decoder: DecoderConfig = DecoderConfig()

    measured: ClassVar[Schema] = Schema((LOSS,), "loss")

    def check(self, backbone: ViTSpec) -> None:
        if backbone.windows is not None:
            raise ModelError(
                "model.windows: the encoder sees a few patches of each image, which do not fill windows; set windows "
                "in the stages that fine-tune"
            )

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        from pipeline.models.heads.mae_decoder.shape import mae_decoder

        return {"decoder": mae_decoder(backbone, self.decoder.dim, self.decoder.depth)}

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        from pipeline.tasks.mae.module import MAE

        return MAE(model, preprocess, self.mask_ratio, 1, self.norm_pixels)

    def encoder_tokens(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        return self.num_visible(whole_patches(image_size, patch)) + spec.backbone.tokens.num_prefix

    def num_visible(self, grid: Pair) -> int:
        """Patches of an image that the encoder sees."""
        return prod(grid) - num_masked(prod(grid), self.mask_ratio)

    def forward_flops(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Operations of the encoder on the visible patches, and of the decoder."""
        from pipeline.models.heads.mae_decoder.shape import decoder_flops

        grid = whole_patches(image_size, patch)
        visible = self.num_visible(grid)
        decoder = decoder_flops(
            spec.heads["decoder"], spec.backbone, visible=visible, masked=prod(grid) - visible, patch=patch
        )
        return self.encoder_flops(spec.backbone, grid, patch) + decoder

    def encoder_flops(self, backbone: ViTSpec, grid: Pair, patch: Pair) -> int:
        """Operations of the encoder's matrix products per image."""
        from pipeline.models.costs import layer_flops

        visible = self.num_visible(grid)
        length = visible + backbone.tokens.num_prefix
        embed = 2 * visible * backbone.channels * prod(patch) * backbone.embed_dim
        return embed + backbone.depth * layer_flops(backbone, length, length)
