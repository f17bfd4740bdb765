"""The module of `embedding`."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.heads.head import Features, Head
from pipeline.models.spec import HeadSpec, ViTSpec


class Embedding(Head):
    """LayerNorm and a matrix."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(backbone.embed_dim, eps=backbone.eps)
        self.projection = nn.Linear(backbone.embed_dim, spec.outputs, bias=False)
        self.average = backbone.pool == "avg"
        self.initialise()

    def initialise(self) -> None:
        nn.init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)

    def forward(self, features: Features) -> Tensor:
        """Embeddings [B, E], not normalised."""
        pooled = features.patches.mean(dim=1) if self.average else features.tokens[:, 0]
        embedding: Tensor = self.projection(self.norm(pooled))
        return embedding
