"""The module of `feature_projection`: LayerNorm and a matrix."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.heads.head import Head
from pipeline.models.layers import Linear
from pipeline.models.spec import HeadSpec, ViTSpec


class FeatureProjection(Head):
    """Predicts the teacher's features of each token from the student's."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(backbone.embed_dim, eps=backbone.eps)
        self.projection = Linear(backbone.embed_dim, spec.outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, outputs]."""
        projected: Tensor = self.projection(self.norm(tokens))
        return projected
