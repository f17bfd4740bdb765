"""The head of SimMIM (Xie et al. 2022, "SimMIM: A Simple Framework for Masked Image Modeling").

Legend: B batch, P prefix tokens, N patches, M masked ones, D width, C channels, (p, q) patch.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.heads._pixels import PixelProjection
from pipeline.models.heads.head import Head
from pipeline.models.masking import Masking
from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class SimMIMHead(Head):
    """Predicts the pixels of each masked patch from its own token, which was [MASK] at the encoder's input."""

    def __init__(self, head: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__()
        self.num_prefix = backbone.tokens.num_prefix
        self.norm = nn.LayerNorm(backbone.embed_dim, eps=backbone.eps)
        self.pixels = PixelProjection(backbone.embed_dim, backbone.channels, backbone.patch)

    def forward(self, tokens: Tensor, masking: Masking, patch: Pair) -> Tensor:
        """[B, P+N, D] -> pixels [B, M, C*p*q] of the patches `masking.masked`."""
        masked = tokens[:, self.num_prefix :].take_along_dim(masking.masked[..., None], dim=1)
        pixels: Tensor = self.pixels(self.norm(masked), patch)
        return pixels
