"""Attention on a CPU, with its gradients.

Legend: B batch, H heads, Q queries, T keys, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.models.arithmetic import plain
from pipeline.models.arithmetic.cpu.operators import OPERATORS
from pipeline.models.arithmetic.cpu.pieces import cut, piece_rows
from pipeline.models.arithmetic.cpu.rules import attends_by_products, computes_in_fp32, in_pieces, kept_samples
from pipeline.models.arithmetic.cpu.scratch import cast, scratch


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    drop: Callable[[Tensor], Tensor] | None = None,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """See `arithmetic.attention`."""
    sees_all = drop is None and not causal and mask is None
    if sees_all and attends_by_products(q, k):
        attended: Tensor = _AttentionByProducts.apply(q, k, v, kept_samples(q, k))
    elif not computes_in_fp32(q):
        attended = plain.attention(q, k, v, drop, causal=causal, mask=mask)
    elif sees_all and in_pieces():
        attended = _AttentionInFp32.apply(q, k, v)
    else:
        wide = q.float(), k.float(), v.float()
        attended = plain.attention(*wide, drop, causal=causal, mask=mask).to(q.dtype)
    return attended


class _AttentionInFp32(torch.autograd.Function):
    """torch's fused attention in fp32 on half-precision tensors, which it keeps; a few samples at a time."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        logsumexp = q.new_empty(q.shape[:3], dtype=torch.float32)
        for part in _sample_parts(q, k):
            out[part], logsumexp[part] = attend(*_as_fp32(part, q=q, k=k, v=v))
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, out, logsumexp = ctx.saved_tensors
        attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        results = [torch.empty_like(tensor) for tensor in (q, k, v)]
        for part in _sample_parts(q, k):
            tensors = _as_fp32(part, grad=grad, q=q, k=k, v=v, out=out)
            grads = attend_backward(*tensors, logsumexp[part], 0.0, False)
            for result, value in zip(results, grads, strict=True):
                result[part] = value
        return tuple(results)


def _as_fp32(part: slice, **tensors: Tensor) -> list[Tensor]:
    return [cast(tensor[part], purpose) for purpose, tensor in tensors.items()]


class _AttentionByProducts(torch.autograd.Function):
    """Attention as batched half-precision products, scores and softmax in fp32; a few samples at a time.

    Keeps no scores, and weights only of the first `keep` samples; the backward pass recomputes the others.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, keep: int) -> Tensor:
        out: Tensor
        out, weights = torch.ops.minivit.attend(q, k, v, keep)
        ctx.save_for_backward(q, k, v, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *torch.ops.minivit.attend_backward(grad, *ctx.saved_tensors), None


OPERATORS.define("attend(Tensor q, Tensor k, Tensor v, int keep) -> (Tensor, Tensor)")
OPERATORS.define(
    "attend_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor weights) -> (Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("minivit::attend", lib=OPERATORS)
def _attended(q: Tensor, k: Tensor, v: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    _, heads, queries, _ = q.shape
    return _like_heads(q), q.new_empty(keep, heads, queries, k.shape[2])


@torch.library.register_fake("minivit::attend_backward", lib=OPERATORS)
def _gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    return _like_heads(q), _like_heads(k), _like_heads(v)


def _like_heads(x: Tensor) -> Tensor:
    """Uninitialised [B, H, T, d] with x's shape, with tokens laid out as the next product needs them."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


@torch.library.impl(OPERATORS, "attend", "CPU")
def _attend(q: Tensor, k: Tensor, v: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    out, kept = _attended(q, k, v, keep)
    for part in _score_parts(q, k):
        weights = _weights(q[part], k[part], kept[part] if part.stop <= keep else None)
        out[part] = torch.bmm(weights, _heads(v[part], "v")).view_as(out[part])
    return out, kept


@torch.library.impl(OPERATORS, "attend_backward", "CPU")
def _attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> tuple[Tensor, ...]:
    (grad_q, grad_k, grad_v), width = _gradients(grad, q, k, v, kept), q.shape[-1]
    for part in _score_parts(q, k):
        weights = kept[part].flatten(0, 1) if part.stop <= len(kept) else _weights(q[part], k[part])
        grad_out = _heads(grad[part], "grad")
        grad_v[part] = torch.bmm(weights.transpose(1, 2), grad_out).view_as(v[part])
        grads = torch.bmm(grad_out, _heads(v[part], "v").transpose(1, 2), out=scratch("grads", weights.shape, q.dtype))
        torch.ops.aten._softmax_backward_data.out(grads, weights, -1, q.dtype, grad_input=grads)
        grad_q[part] = _scaled(grads, _heads(k[part], "k"), "grad_q", width).view_as(q[part])
        grad_k[part] = _scaled(grads.transpose(1, 2), _heads(q[part], "q"), "grad_k", width).view_as(k[part])
    return grad_q, grad_k, grad_v


def _weights(q: Tensor, k: Tensor, out: Tensor | None = None) -> Tensor:
    """[b, H, Q, d], [b, H, T, d] -> [b * H, Q, T]: softmax of the scaled scores, rounded at the end.

    Written to `out` [b, H, Q, T], otherwise to a scratch buffer.
    """
    asking, answering = _heads(q, "asking", torch.float32), _heads(k, "answering", torch.float32)
    scores = _scaled(asking, answering.transpose(1, 2), "scores", q.shape[-1])
    torch.ops.aten._softmax.out(scores, -1, False, out=scores)
    return cast(scores, "weights", q.dtype) if out is None else out.flatten(0, 1).copy_(scores)


def _scaled(a: Tensor, b: Tensor, purpose: str, width: int) -> Tensor:
    """[n, I, J] @ [n, J, K] / sqrt(width), in a scratch buffer."""
    out = scratch(purpose, (len(a), a.shape[1], b.shape[2]), a.dtype)
    return torch.baddbmm(out, a, b, beta=0, alpha=width**-0.5, out=out)


def _heads(x: Tensor, purpose: str, dtype: torch.dtype | None = None) -> Tensor:
    """[b, H, T, d] -> contiguous [b * H, T, d], in a scratch buffer."""
    return cast(x, purpose, dtype or x.dtype).flatten(0, 1)


def _score_parts(q: Tensor, k: Tensor) -> list[slice]:
    """Groups of samples whose scores stay in the cache."""
    samples, heads, queries, _ = q.shape
    return cut(samples, piece_rows(samples, heads * queries * k.shape[2]))


def _sample_parts(q: Tensor, k: Tensor) -> list[slice]:
    """Groups of samples [B, ...] that give every thread several heads."""
    samples, heads, _, width = q.shape
    step = max(piece_rows(samples, heads * k.shape[2] * width), -(-4 * torch.get_num_threads() // heads))
    return cut(samples, step)
