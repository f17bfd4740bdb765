"""Decides how products and attention are computed on this CPU.

Activations always have the dtype of the weights. What differs is how products and attention are computed:

- By default, with torch's own operators.
- In half precision on a CPU without arithmetic for it, where torch emulates it at a hundredth of the speed of fp32:
  in fp32, with half precision in memory, as matrix units do too. Outside of `torch.compile` and exported graphs, which
  fuse on their own, this runs in blocks of rows that stay in the cache, and the backward pass recomputes what is cheap.
- In bf16 on a CPU with arithmetic for it: products by oneDNN, which fuses the bias. Attention uses such products too,
  up to the token count where they stop beating torch's fused attention, which takes up to three times as long on
  vector units (AVX512-BF16) and five times on matrix units (AMX). Compilers leave both unchanged.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.models.tracing import is_traced

Arithmetic = Literal["none", "vector", "matrix"]


def cpu_arithmetic(dtype: torch.dtype) -> Arithmetic:
    """Best arithmetic units of this CPU for a half-precision dtype."""
    if dtype == torch.bfloat16:
        if torch.cpu._is_amx_tile_supported():
            return "matrix"
        return "vector" if torch.cpu._is_avx512_bf16_supported() else "none"
    return "matrix" if torch.cpu._is_amx_fp16_supported() else "none"


ARITHMETIC = {dtype: cpu_arithmetic(dtype) for dtype in (torch.bfloat16, torch.float16)}
# Most attention scores of one sample, all heads, that are held at once: 16 MB in fp32, 1,024 tokens of 4 heads.
SCORES_VALUES = 1 << 22
# Number of keys up to which attention by products is faster. On AMX, 28 px in patches of 4 (50 tokens) gain 4x to 5x,
# 224 px in patches of 16 (197) 1.4x to 1.6x, 384 px (577) 1.05x to 1.4x; 785 tokens lose up to a fifth.
PRODUCTS_KEYS: dict[Arithmetic, int] = {"vector": SCORES_VALUES, "matrix": 640}
# Attention weights kept for the backward pass, in values per token and channel: a sixth of a layer's other kept values.
KEPT_VALUES = 2


def computes_in_fp32(x: Tensor) -> bool:
    """Whether to compute products of this half-precision tensor in fp32, because the CPU only emulates them."""
    return ARITHMETIC.get(x.dtype) == "none" and not _in_autocast()


def multiplies_natively(x: Tensor) -> bool:
    """Whether oneDNN computes products of this half-precision tensor, because the CPU has arithmetic for them."""
    has_units = x.dtype == torch.bfloat16 and ARITHMETIC[x.dtype] != "none"
    return has_units and not torch.compiler.is_exporting() and not _in_autocast()


def attends_by_products(q: Tensor, k: Tensor) -> bool:
    """Whether attention of q [B, H, Q, d] and k [B, H, T, d] is computed as products in half precision."""
    if not multiplies_natively(q):
        return False
    return q.shape[1] * q.shape[2] * k.shape[2] <= SCORES_VALUES and k.shape[2] <= PRODUCTS_KEYS[ARITHMETIC[q.dtype]]


def kept_samples(q: Tensor, k: Tensor) -> int:
    """Number of samples whose weights attention by products keeps for the backward pass; it recomputes the others."""
    return min(int(len(q) * KEPT_VALUES * q.shape[3] / k.shape[2]), len(q)) if torch.is_grad_enabled() else 0


def in_pieces() -> bool:
    """Whether to compute in pieces what torch's operators do slowly."""
    return not is_traced() and not _in_autocast()


def _in_autocast() -> bool:
    """Whether torch chooses dtypes itself; False under tracing: a compiler cannot ask and handles autocast itself."""
    return not is_traced() and torch.is_autocast_enabled("cpu")
