"""The module of `distillation`: one matrix."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.heads.classifier.module import Classifier
from pipeline.models.heads.head import Features, Head
from pipeline.models.layers import Linear
from pipeline.models.spec import HeadSpec, ViTSpec


class Distillation(Head, Linear):
    """Averages its logits with the classifier's."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__(backbone.embed_dim, spec.outputs)

    def forward(  # type: ignore[override]
        self, features: Features, classifier: Classifier, logits: Tensor | None
    ) -> Tensor:
        """Returns the mean [B, K] of the classifier's logits [B, K] and its own; only its own if `logits` is None."""
        own = Linear.forward(self, classifier[0](features.tokens[:, 1]))
        return own if logits is None else (logits + own) / 2

    def initialise(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
