"""Projects a student's tokens to its teacher's width (FitNets, Romero et al. 2015); fine-tuning drops it."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class _FeatureProjection(HeadKind):
    """LayerNorm and one matrix on each token; `outputs` is the teacher's width. The task calls it."""

    output = "features"
    dropped = True

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        if spec.outputs < 1:
            raise ModelError(f"heads: a feature_projection has {spec.outputs} outputs, but needs at least 1")

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        return None

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return 2 * backbone.embed_dim + (backbone.embed_dim + 1) * spec.outputs

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """For all patches and the class token, the upper bound."""
        return 2 * (prod(grid) + 1) * backbone.embed_dim * spec.outputs

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """Tokens before and after the norm."""
        return 2 * (prod(grid) + 1) * backbone.embed_dim

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.feature_projection.module import FeatureProjection

        return FeatureProjection(spec, backbone)


HEAD = _FeatureProjection()
