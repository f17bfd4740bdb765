"""Products of matrices and attention, with their gradients, as `execution` chooses to carry them out.

Legend: B batch, T tokens, H heads, d = D / H, I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.models.execution import computes_in_fp32, in_pieces, piece_rows, scratch


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """[..., I] -> [..., O]: x @ weight.T + bias, of the exact GELU of x if asked; `weight` is [O, I]."""
    if not computes_in_fp32(x):
        return F.linear(F.gelu(x) if gelu else x, weight, bias)
    if in_pieces(x):
        product: Tensor = _LinearInFp32.apply(x, weight, bias, gelu)
        return product
    return F.linear(F.gelu(x.float()) if gelu else x.float(), weight.float(), bias.float()).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention: q [B, H, Q, d], k and v [B, H, T, d] -> [B, H, Q, d]."""
    if not computes_in_fp32(q):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    if dropout or not in_pieces(q):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), dropout_p=dropout).to(q.dtype)
    attended: Tensor = _AttentionInFp32.apply(q, k, v)
    return attended


class _LinearInFp32(torch.autograd.Function):
    """A linear layer in fp32 of half-precision tensors, over a few rows at a time, while they are in the cache.

    Of an activated product only the input of the activation is kept: its output, as large, is computed again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu  # type: ignore[attr-defined]
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


def _gelu(x: Tensor) -> Tensor:
    activated: Tensor = torch.ops.aten.gelu.out(x, out=scratch("gelu", x.shape, x.dtype))
    return activated


def _cast(x: Tensor, purpose: str) -> Tensor:
    """The half-precision x in fp32, for a moment."""
    return scratch(purpose, x.shape, torch.float32).copy_(x)


def _parts(rows: Tensor, weight: Tensor) -> list[slice]:
    step = piece_rows(len(rows), max(weight.shape))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


class _AttentionInFp32(torch.autograd.Function):
    """torch's fused attention in fp32 of half-precision tensors, which are what is kept; a few samples at a time."""

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


def _sample_parts(q: Tensor, k: Tensor) -> list[slice]:
    """Samples [B, ...] in groups that give every thread several heads to attend with."""
    samples, heads, _, width = q.shape
    step = max(piece_rows(samples, heads * k.shape[2] * width), -(-4 * torch.get_num_threads() // heads))
    return [slice(start, start + step) for start in range(0, samples, step)]
