"""Attention weights of every layer and head, for reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.models.encoder import EncoderLayer
from pipeline.models.windows import window_mask

if TYPE_CHECKING:
    from pipeline.models.minivit import MiniViT


@torch.no_grad()
def attention_maps(model: MiniViT, images: Tensor) -> Tensor:
    """Images [B, C, H, W] -> attention [B, depth, heads, P+N, P+N] in fp32; row i sums to 1 over what token i sees.

    Holds the full matrices of all layers in memory, so pass few images. Disables dropout and drop path meanwhile.
    """
    training = model.training
    model.eval()
    try:
        x, grid, maps = model.embed(images), model.grid(images), []
        for layer in model.transformer.layers:
            assert isinstance(layer, EncoderLayer)
            side = layer.window
            mask = None if side is None else window_mask(grid, side, x.shape[1] - grid[0] * grid[1]).to(x.device)
            maps.append(layer.attention_weights(x, mask))
            x = layer(x, grid=grid)
    finally:
        model.train(training)
    return torch.stack(maps, dim=1)
