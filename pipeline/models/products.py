"""Matrix products and attention, with their gradients, executed as `execution` decides.

Legend: B batch, T tokens, H heads, d = D / H, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.models.execution import (
    attends_by_products,
    computes_in_fp32,
    in_pieces,
    kept_samples,
    multiplies_natively,
    piece_rows,
    scratch,
)


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """[..., I] -> [..., O]: x @ weight.T + bias, on the exact GELU of x if `gelu`; `weight` is [O, I]."""
    if multiplies_natively(x):
        product: Tensor = _NativeLinear.apply(x, weight, bias, gelu)
    elif not computes_in_fp32(x):
        product = F.linear(F.gelu(x) if gelu else x, weight, bias)
    elif in_pieces(x):
        product = _LinearInFp32.apply(x, weight, bias, gelu)
    else:
        product = F.linear(F.gelu(x.float()) if gelu else x.float(), weight.float(), bias.float()).to(x.dtype)
    return product


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
    if causal or mask is not None:
        assert drop is None, "attention that does not see everything drops nothing"
        one = torch.float32 if computes_in_fp32(q) else q.dtype
        partly = F.scaled_dot_product_attention(q.to(one), k.to(one), v.to(one), attn_mask=mask, is_causal=causal)
        attended = partly.to(q.dtype)
    elif drop is not None:
        attended = _attention_dropping(q, k, v, drop)
    elif attends_by_products(q, k):
        attended = _AttentionByProducts.apply(q, k, v, kept_samples(q, k))
    elif not computes_in_fp32(q):
        attended = F.scaled_dot_product_attention(q, k, v)
    elif not in_pieces(q):
        attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    else:
        attended = _AttentionInFp32.apply(q, k, v)
    return attended


def _attention_dropping(q: Tensor, k: Tensor, v: Tensor, drop: Callable[[Tensor], Tensor]) -> Tensor:
    dtype = q.dtype
    if computes_in_fp32(q):
        q, k, v = q.float(), k.float(), v.float()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = scores.float().softmax(dim=-1).to(v.dtype)
    return (drop(weights) @ v).to(dtype)


class _LinearInFp32(torch.autograd.Function):
    """Linear layer in fp32 on half-precision tensors, a few rows at a time, so that they stay in the cache.

    Keeps only the input of the activation; its output, just as large, is recomputed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        rows, matrix, shift = x.reshape(-1, x.shape[-1]), _cast(weight, "weight").t(), bias.float()
        out = rows.new_empty(len(rows), len(weight))
        for part in _parts(rows, weight):
            piece = _cast(rows[part], "in")
            hidden = _gelu(piece) if gelu else piece
            out[part] = torch.addmm(shift, hidden, matrix, out=scratch("out", out[part].shape, torch.float32))
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        rows, grads, matrix = x.reshape(-1, x.shape[-1]), grad.reshape(-1, len(weight)), _cast(weight, "weight")
        grad_x = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grad_weight = scratch("grad_weight", weight.shape, torch.float32).zero_()
        for part in _parts(rows, weight):
            piece, grad_piece = _cast(rows[part], "in"), _cast(grads[part], "out")
            grad_weight.addmm_(grad_piece.t(), _gelu(piece) if ctx.gelu else piece)
            if grad_x is not None:
                grad_in = torch.mm(grad_piece, matrix, out=scratch("grad_in", piece.shape, torch.float32))
                if ctx.gelu:
                    torch.ops.aten.gelu_backward.grad_input(grad_in, piece, grad_input=grad_in)
                grad_x[part] = grad_in
        shaped = None if grad_x is None else grad_x.view_as(x)
        return shaped, grad_weight.to(weight.dtype), grads.sum(dim=0), None


class _NativeLinear(torch.autograd.Function):
    """Linear layer in half precision; keeps only the input of the activation.

    oneDNN adds the bias while it writes the product; torch's own product fills the output with the bias first.
    Compilers see custom operators, which they leave alone: their own GELU takes more than twice as long as torch's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        out: Tensor = torch.ops.minivit.linear(x, weight, bias, gelu)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        wanted = ctx.needs_input_grad[0]
        grad_x, *grads = torch.ops.minivit.linear_backward(grad, *ctx.saved_tensors, ctx.gelu, wanted)
        return grad_x if wanted else None, *grads, None


OPERATORS = torch.library.Library("minivit", "DEF")
OPERATORS.define("linear(Tensor x, Tensor weight, Tensor bias, bool gelu) -> Tensor")
OPERATORS.define(
    "linear_backward(Tensor grad, Tensor x, Tensor weight, bool gelu, bool wanted) -> (Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("minivit::linear", lib=OPERATORS)
def _product(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.register_fake("minivit::linear_backward", lib=OPERATORS)
def _linear_gradients(grad: Tensor, x: Tensor, weight: Tensor, gelu: bool, wanted: bool) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape if wanted else 0), torch.empty_like(weight), grad.new_empty(len(weight))


@torch.library.impl(OPERATORS, "linear", "CPU")
def _linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    product = torch.ops.mkldnn._linear_pointwise(_gelu(rows) if gelu else rows, weight, bias, "none", [], "")
    shaped: Tensor = torch.ops.aten._unsafe_view(product, (*x.shape[:-1], len(weight)))  # may be written to
    return shaped


@torch.library.impl(OPERATORS, "linear_backward", "CPU")
def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor, gelu: bool, wanted: bool) -> tuple[Tensor, ...]:
    grads, rows = grad.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
    grad_bias = grads.sum(dim=0)
    grad_weight = grads.t() @ (_gelu(rows) if gelu else rows)
    grad_x = (grads @ weight).view(x.shape) if wanted else x.new_empty(0)
    if gelu and wanted:
        torch.ops.aten.gelu_backward.grad_input(grad_x, x, grad_input=grad_x)
    return grad_x, grad_weight, grad_bias


def _gelu(x: Tensor) -> Tensor:
    activated: Tensor = torch.ops.aten.gelu.out(x, out=scratch("gelu", x.shape, x.dtype))
    return activated


def _cast(x: Tensor, purpose: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Contiguous x in another dtype, in a scratch buffer."""
    return scratch(purpose, x.shape, dtype).copy_(x)


def _cut(rows: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _parts(rows: Tensor, weight: Tensor) -> list[slice]:
    return _cut(len(rows), piece_rows(len(rows), max(weight.shape)))


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
    return [_cast(tensor[part], purpose) for purpose, tensor in tensors.items()]


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
    return _cast(scores, "weights", q.dtype) if out is None else out.flatten(0, 1).copy_(scores)


def _scaled(a: Tensor, b: Tensor, purpose: str, width: int) -> Tensor:
    """[n, I, J] @ [n, J, K] / sqrt(width), in a scratch buffer."""
    out = scratch(purpose, (len(a), a.shape[1], b.shape[2]), a.dtype)
    return torch.baddbmm(out, a, b, beta=0, alpha=width**-0.5, out=out)


def _heads(x: Tensor, purpose: str, dtype: torch.dtype | None = None) -> Tensor:
    """[b, H, T, d] -> contiguous [b * H, T, d], in a scratch buffer."""
    return _cast(x, purpose, dtype or x.dtype).flatten(0, 1)


def _score_parts(q: Tensor, k: Tensor) -> list[slice]:
    """Groups of samples whose scores stay in the cache."""
    samples, heads, queries, _ = q.shape
    return _cut(samples, piece_rows(samples, heads * queries * k.shape[2]))


def _sample_parts(q: Tensor, k: Tensor) -> list[slice]:
    """Groups of samples [B, ...] that give every thread several heads."""
    samples, heads, _, width = q.shape
    step = max(piece_rows(samples, heads * k.shape[2] * width), -(-4 * torch.get_num_threads() // heads))
    return _cut(samples, step)
