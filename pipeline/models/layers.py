"""Small layers that follow the dtype of what flows through them.

DeepSpeed's bf16 engine keeps weights in bfloat16. On a CPU without bfloat16 matrix units the step computes in fp32
(`compute_dtype`), so each layer casts its few weights to the dtype of its many activations; equal dtypes cost nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the activations for weights of this dtype and device.

    Half precision on a CPU without AMX is emulated: bf16 matmuls ran at half the speed of fp32 there, so fp32 is both
    faster and more exact. Elsewhere it is the weights' own dtype.
    """
    half = weight.dtype in (torch.bfloat16, torch.float16)
    if half and weight.device.type == "cpu" and not torch.cpu._is_amx_tile_supported():
        return torch.float32
    return weight.dtype


class Linear(nn.Linear):
    """`nn.Linear` whose weights follow the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` whose weights follow the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class LayerScale(nn.Module):
    """A learned factor per channel at the end of a residual branch (CaiT, Touvron et al. 2021)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.to(x.dtype)


class DropPath(nn.Module):
    """Leaves out a residual branch per sample (stochastic depth, Huang et al. 2016), scaled to keep the expectation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, dtype=torch.float32, device=x.device) >= self.rate
        return x * (keep.to(x.dtype) / (1 - self.rate))
