"""The module of `two_layers`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.heads.head import Features, Head
from pipeline.models.layers import Linear
from pipeline.models.spec import HeadSpec, ViTSpec


class TwoLayers(Head):
    """LayerNorm, Linear, GELU, Linear."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__()
        dim, hidden = backbone.embed_dim, spec.options["hidden"]
        self.norm = nn.LayerNorm(dim, eps=backbone.eps)
        self.first, self.second = Linear(dim, hidden), Linear(hidden, spec.outputs)

    def forward(self, features: Features) -> Tensor:
        """Values [B, outputs]."""
        values: Tensor = self.second(F.gelu(self.first(self.norm(features.patches.mean(dim=1)))))
        return values
