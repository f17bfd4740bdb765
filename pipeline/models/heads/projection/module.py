"""The module of `projection`.

Legend: B batch, N patches, D width of the encoder, d that of the embeddings.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.heads.head import Features, Head
from pipeline.models.heads.projection import widths
from pipeline.models.layers import Linear
from pipeline.models.spec import HeadSpec, ViTSpec


class Projection(Head):
    """An MLP with GELU on normalised features. No BatchNorm, so results do not depend on ranks and micro-batches."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__()
        self.average = backbone.pool == "avg"
        self.norm = nn.LayerNorm(backbone.embed_dim, eps=backbone.eps)
        self.layers = nn.ModuleList(Linear(given, made) for given, made in pairwise(widths(spec, backbone)))

    def forward(self, features: Features) -> Tensor:
        """Embeddings [B, d]."""
        return self.project(self.pooled(features))

    def pooled(self, features: Features) -> Tensor:
        """The features used downstream, [B, D]: the class token or the mean of the patches, as the model pools."""
        normed: Tensor = self.norm(features.patches.mean(dim=1) if self.average else features.tokens[:, 0])
        return normed

    def project_patches(self, tokens: Tensor) -> Tensor:
        """Patches' tokens [B, N, D] -> [B, N, d]."""
        return self.project(self.norm(tokens))

    def project(self, x: Tensor) -> Tensor:
        """Normalised features [..., D] -> [..., d]."""
        for number, layer in enumerate(self.layers):
            x = layer(F.gelu(x) if number else x)
        return x
