"""The arithmetic as torch's own operators compute it, on every device; signatures as in the package."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.drop_path import GOLDEN, mix

DRAWS = 4  # 16-bit draws in one 64-bit number of a key's stream


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    return F.linear(F.gelu(x) if gelu else x, weight, bias)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    drop: Callable[[Tensor], Tensor] | None = None,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    if drop is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    assert not causal, "causal attention drops nothing"
    assert mask is None, "masked attention drops nothing"
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return drop(scores.float().softmax(dim=-1).to(v.dtype)) @ v


def draws_reach(threshold: int, keys: Tensor, count: int) -> Tensor:
    steps = torch.arange(1, -(-count // DRAWS) + 1, device=keys.device) * GOLDEN
    return mix(keys[:, None] + steps).view(torch.int16)[:, :count] >= threshold
