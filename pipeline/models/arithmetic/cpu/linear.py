"""Linear layers on a CPU, with their gradients.

Legend: I inputs and O outputs of a linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.models.arithmetic import plain
from pipeline.models.arithmetic.cpu.operators import OPERATORS
from pipeline.models.arithmetic.cpu.pieces import cut, piece_rows
from pipeline.models.arithmetic.cpu.rules import computes_in_fp32, in_pieces, multiplies_natively
from pipeline.models.arithmetic.cpu.scratch import cast, scratch


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """See `arithmetic.linear`."""
    if multiplies_natively(x):
        product: Tensor = _NativeLinear.apply(x, weight, bias, gelu)
    elif not computes_in_fp32(x):
        product = plain.linear(x, weight, bias, gelu=gelu)
    elif in_pieces():
        product = _LinearInFp32.apply(x, weight, bias, gelu)
    else:
        product = plain.linear(x.float(), weight.float(), bias.float(), gelu=gelu).to(x.dtype)
    return product


class _LinearInFp32(torch.autograd.Function):
    """Linear layer in fp32 on half-precision tensors, a few rows at a time, so that they stay in the cache.

    Keeps only the input of the activation; its output, just as large, is recomputed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        rows, matrix, shift = x.reshape(-1, x.shape[-1]), cast(weight, "weight").t(), bias.float()
        out = rows.new_empty(len(rows), len(weight))
        for part in _parts(rows, weight):
            piece = cast(rows[part], "in")
            hidden = _gelu(piece) if gelu else piece
            out[part] = torch.addmm(shift, hidden, matrix, out=scratch("out", out[part].shape, torch.float32))
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        rows, grads, matrix = x.reshape(-1, x.shape[-1]), grad.reshape(-1, len(weight)), cast(weight, "weight")
        grad_x = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        grad_weight = scratch("grad_weight", weight.shape, torch.float32).zero_()
        for part in _parts(rows, weight):
            piece, grad_piece = cast(rows[part], "in"), cast(grads[part], "out")
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


def _parts(rows: Tensor, weight: Tensor) -> list[slice]:
    return cut(len(rows), piece_rows(len(rows), max(weight.shape)))
