"""The last layer of heads that predict pixels.

Legend: B batch, M tokens, D width, C channels, (p, q) patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.arithmetic import linear
from pipeline.models.resize import resize_tensor
from pipeline.models.spec import Pair


class PixelProjection(nn.Linear):
    """Linear prediction of each token's patch, with pixels in the order of `patch_embed.patchify`."""

    def __init__(self, dim: int, channels: int, patch: Pair) -> None:
        super().__init__(dim, channels * patch[0] * patch[1])
        self.patch = patch

    def forward(self, tokens: Tensor, patch: Pair | None = None) -> Tensor:
        """[B, M, D] -> [B, M, C*p*q], for patches of `patch` pixels (default: its own).

        For another patch size, the prediction is resized by resizing the weights in fp32.
        """
        if patch is None or tuple(patch) == tuple(self.patch):
            return linear(tokens, self.weight, self.bias)
        return linear(tokens, self._resized(self.weight, patch), self._resized(self.bias, patch))

    def _resized(self, values: Tensor, patch: Pair) -> Tensor:
        """[C*p*q, ...] -> [C*p'*q', ...]."""
        down, across = (
            resize_tensor(old, new, torch.float32, values.device) for old, new in zip(self.patch, patch, strict=True)
        )
        patches = values.float().unflatten(0, (-1, *self.patch))
        return torch.einsum("ap,bq,cpq...->cab...", down, across, patches).flatten(0, 2).to(values.dtype)
