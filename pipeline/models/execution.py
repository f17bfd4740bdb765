"""The one place that decides how the model's mathematics is executed on the processor at hand.

Activations always have the dtype of the weights. What differs is how products and attention are computed:

- By default, with torch's own operators.
- In half precision on a CPU without arithmetic for it, where torch emulates it at a hundredth of the speed of fp32:
  in fp32, with half precision in memory, as matrix units do too. Outside of `torch.compile` and exported graphs, which
  fuse on their own, this runs in blocks of rows that stay in the cache, and the backward pass recomputes what is cheap
  (`products`).
- In bf16 on a CPU with arithmetic for it: products by oneDNN, which fuses the bias. Attention uses such products too,
  up to the token count where they stop beating torch's fused attention, which takes up to three times as long on
  vector units (AVX512-BF16) and five times on matrix units (AMX). Compilers leave both unchanged.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Arithmetic = Literal["none", "vector", "matrix"]


def cpu_arithmetic(dtype: torch.dtype) -> Arithmetic:
    """Best arithmetic units of this CPU for a half-precision dtype."""
    if dtype == torch.bfloat16:
        if torch.cpu._is_amx_tile_supported():
            return "matrix"
        return "vector" if torch.cpu._is_avx512_bf16_supported() else "none"
    return "matrix" if torch.cpu._is_amx_fp16_supported() else "none"


ARITHMETIC = {dtype: cpu_arithmetic(dtype) for dtype in (torch.bfloat16, torch.float16)}
# fp32 values in the widest operand of a piece of a product: 2 MB, so that all operands stay in a core's cache.
PIECE_VALUES = 1 << 19
# Most attention scores of one sample, all heads, that are held at once: 16 MB in fp32, 1,024 tokens of 4 heads.
SCORES_VALUES = 1 << 22
# Number of keys up to which attention by products is faster. On AMX, 28 px in patches of 4 (50 tokens) gain 4x to 5x,
# 224 px in patches of 16 (197) 1.4x to 1.6x, 384 px (577) 1.05x to 1.4x; 785 tokens lose up to a fifth.
PRODUCTS_KEYS: dict[Arithmetic, int] = {"vector": SCORES_VALUES, "matrix": 640}
# Attention weights kept for the backward pass, in values per token and channel: a sixth of what else a layer keeps.
KEPT_VALUES = 2


def is_traced() -> bool:
    """Whether a compiler or exporter is tracing, which needs plain operators."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def computes_in_fp32(x: Tensor) -> bool:
    """Whether to compute products of this half-precision tensor in fp32, because the device only emulates them."""
    return x.device.type == "cpu" and ARITHMETIC.get(x.dtype) == "none" and not _in_autocast()


def multiplies_natively(x: Tensor) -> bool:
    """Whether oneDNN computes products of this half-precision tensor, because the CPU has arithmetic for them."""
    has_units = x.device.type == "cpu" and x.dtype == torch.bfloat16 and ARITHMETIC[x.dtype] != "none"
    return has_units and not torch.compiler.is_exporting() and not _in_autocast()


def attends_by_products(q: Tensor, k: Tensor) -> bool:
    """Whether attention of q [B, H, Q, d] and k [B, H, T, d] is computed as products in half precision."""
    if not multiplies_natively(q):
        return False
    return q.shape[1] * q.shape[2] * k.shape[2] <= SCORES_VALUES and k.shape[2] <= PRODUCTS_KEYS[ARITHMETIC[q.dtype]]


def kept_samples(q: Tensor, k: Tensor) -> int:
    """Number of samples whose weights attention by products keeps for the backward pass; it recomputes the others."""
    return min(int(len(q) * KEPT_VALUES * q.shape[3] / k.shape[2]), len(q)) if torch.is_grad_enabled() else 0


def in_pieces(x: Tensor) -> bool:
    """Whether `products` computes in pieces what torch's operators do slowly."""
    return x.device.type == "cpu" and not is_traced() and not _in_autocast()


def _in_autocast() -> bool:
    """Whether torch chooses dtypes itself; False under tracing: a compiler cannot ask and handles autocast itself."""
    return not is_traced() and torch.is_autocast_enabled("cpu")


def piece_rows(rows: int, width: int) -> int:
    """Rows per piece of a [rows, width] operand: about `PIECE_VALUES` values each, in pieces of nearly equal length."""
    pieces = max(-(-rows * width // PIECE_VALUES), 1)
    return max(-(-rows // pieces), 1)


class _Scratch(threading.local):
    """One thread's buffers, by purpose and dtype."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}


_SCRATCH = _Scratch()


def scratch(purpose: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Returns a short-lived CPU tensor; the next call with the same purpose and dtype reuses its memory.

    Short-lived buffers between long-lived tensors fragment the heap: a training step took a fifth more memory. These
    lie outside of the heap.
    """
    size, key = math.prod(shape), (purpose, dtype)
    buffer = _SCRATCH.buffers.get(key)
    if buffer is None or buffer.numel() < size:
        memory = mmap.mmap(-1, max(size, 1) * dtype.itemsize)
        with torch.inference_mode(False):  # otherwise training could not write to a tensor created in inference mode
            buffer = _SCRATCH.buffers[key] = torch.frombuffer(memory, dtype=dtype)
    return buffer[:size].view(*shape)
