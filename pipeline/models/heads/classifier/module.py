"""The module of `classifier`; its keys are the tutorial's."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.heads.head import Features, Head
from pipeline.models.layers import Linear
from pipeline.models.spec import HeadSpec, ViTSpec


class Classifier(Head, nn.Sequential):
    """LayerNorm and a matrix."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        dim = backbone.embed_dim
        super().__init__(nn.LayerNorm(dim, eps=backbone.eps), Linear(dim, spec.outputs))
        self.average = backbone.pool == "avg"

    def forward(self, features: Features) -> Tensor:
        """Logits [B, K]."""
        logits: Tensor = self[1](self[0](features.patches.mean(dim=1) if self.average else features.tokens[:, 0]))
        return logits

    @property
    def encoder_norm(self) -> nn.Module:
        return self[0]

    def initialise(self) -> None:
        """Small, so the first loss is that of a random guess, ln(classes)."""
        matrix = self[1]
        assert isinstance(matrix, Linear)
        nn.init.trunc_normal_(matrix.weight, std=0.02)
