"""The decoder of masked autoencoders (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners").

Legend: B batch, P prefix tokens, (h, w) grid, N = h * w patches, M masked ones, D width of the encoder, d that of the
decoder, C channels, (p, q) patch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.heads._pixels import PixelProjection
from pipeline.models.heads.head import Head
from pipeline.models.heads.mae_decoder.shape import decoder_spec
from pipeline.models.layers import Linear
from pipeline.models.masking import Masking
from pipeline.models.pos_embed import sincos_positions
from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class MAEDecoder(Head):
    """Predicts the pixels of the masked patches from the encoder's output on the visible ones.

    It begins with the encoder's final norm, which a MiniViT leaves to its heads.
    """

    def __init__(self, head: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__()
        spec = decoder_spec(head, backbone)
        self.num_prefix, self.dim = spec.tokens.num_prefix, spec.embed_dim
        self.norm = nn.LayerNorm(backbone.embed_dim, eps=spec.eps)
        self.embed = Linear(backbone.embed_dim, self.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.dim))
        self.transformer = Encoder(spec)
        self.out_norm = nn.LayerNorm(self.dim, eps=spec.eps)
        self.pixels = PixelProjection(self.dim, spec.channels, spec.patch)
        self.initialise()

    def initialise(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, masking: Masking, grid: Pair, patch: Pair) -> Tensor:
        """[B, P+N-M, D] of the patches `masking.visible` -> pixels [B, M, C*p*q] of the patches `masking.masked`.

        The masked patches come first, in the order of `masking`, so that the last layer computes only them.
        """
        x = self.embed(self.norm(visible))
        positions = _positions(grid, self.dim, x.device).to(x.dtype)  # [N, d]
        prefix, patches = x.tensor_split([self.num_prefix], dim=1)
        tokens = torch.cat(
            [self.mask_token.to(x.dtype) + positions[masking.masked], prefix, patches + positions[masking.visible]],
            dim=1,
        )
        decoded = self.transformer(tokens, masking.masked.shape[1])
        pixels: Tensor = self.pixels(self.out_norm(decoded), patch)
        return pixels


@lru_cache(maxsize=256)
def _positions(grid: Pair, dim: int, device: torch.device) -> Tensor:
    """Fixed sine-cosine positions fp32 [N, d]; cached because sizes drawn per step recur. Do not write to them."""
    with torch.inference_mode(False):  # otherwise training could not use a tensor created in inference mode
        return sincos_positions(grid, dim)[0].to(device)
