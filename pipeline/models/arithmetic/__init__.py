"""The model's products, attention and random draws. Calls go to torch or, on a CPU, to a faster implementation.

Only this module knows `cpu`: no tensor of another device passes through it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipeline.models.arithmetic import cpu, plain


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """[..., I] -> [..., O]: x @ weight.T + bias, on the exact GELU of x if `gelu`; `weight` is [O, I]."""
    return (cpu if _on_cpu(x) else plain).linear(x, weight, bias, gelu=gelu)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    drop: Callable[[Tensor], Tensor] | None = None,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention: q [B, H, Q, d], k and v [B, H, T, d] -> [B, H, Q, d].

    `drop` is applied to the weights [B, H, Q, T], which are then computed in full. If `causal`, query i sees the first
    i + 1 keys; with a `mask`, bool [B or 1, H or 1, Q, T], those that it marks.
    """
    return (cpu if _on_cpu(q) else plain).attention(q, k, v, drop, causal=causal, mask=mask)


def draws_reach(threshold: int, keys: Tensor, count: int) -> Tensor:
    """Bool [B, count]: which of the first draws of each key (int64 [B]), signed 16-bit numbers, reach the threshold."""
    return (cpu if _on_cpu(keys) else plain).draws_reach(threshold, keys, count)


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"
