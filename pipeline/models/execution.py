"""The one place that chooses how the model's mathematics is carried out, by what the processor can do.

Everywhere activations have the dtype of the weights. What differs is how products and attention are computed:

- By torch's own operators, as a rule.
- In half precision on a CPU without matrix units for it, where torch emulates them at a hundredth to half of the speed
  of fp32: in fp32, from and to half precision in memory, which is what matrix units do too. Outside of
  `torch.compile` and exported graphs, which fuse for themselves, that happens in rows that stay in the cache, with what
  is cheap computed again in the backward pass (`products`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

# Half-precision dtypes, and whether this CPU has matrix units (AMX) for them. AVX512-BF16 is not enough: with it alone
# torch's bf16 products ran at half the speed of its fp32 ones.
MATRIX_UNITS = {
    torch.bfloat16: torch.cpu._is_amx_tile_supported(),
    torch.float16: torch.cpu._is_amx_fp16_supported(),
}
# fp32 values in the widest operand of a piece of a product: 2 MB, so that it and its partners stay in a core's cache.
PIECE_VALUES = 1 << 19


def is_traced() -> bool:
    """Whether a compiler or an exporter is looking: it wants plain operators."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def computes_in_fp32(x: Tensor) -> bool:
    """Whether products of this half-precision tensor are computed in fp32, as the device would only emulate them."""
    return x.device.type == "cpu" and not MATRIX_UNITS.get(x.dtype, True) and not _in_autocast()


def in_pieces(x: Tensor) -> bool:
    """Whether a product that `computes_in_fp32` is computed piece by piece, by `products`."""
    return x.device.type == "cpu" and not is_traced() and not _in_autocast()


def _in_autocast() -> bool:
    """Whether torch chooses dtypes itself; a compiler cannot ask, and sees to it on its own."""
    return not is_traced() and torch.is_autocast_enabled("cpu")


def piece_rows(rows: int, width: int) -> int:
    """Rows of a piece of a [rows, width] operand: about `PIECE_VALUES` values, in pieces of nearly equal length."""
    pieces = max(-(-rows * width // PIECE_VALUES), 1)
    return max(-(-rows // pieces), 1)


class _Scratch(threading.local):
    """One thread's buffers, by what they are used for."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}


_SCRATCH = _Scratch()


def scratch(purpose: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A CPU tensor for a moment: whoever asks next for the same purpose gets the same memory.

    Buffers that come and go between tensors that stay leave the heap in pieces: a training step took a fifth more.
    """
    size, key = math.prod(shape), (purpose, dtype)
    buffer = _SCRATCH.buffers.get(key)
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):  # else training could not write to what a prediction made
            buffer = _SCRATCH.buffers[key] = torch.empty(size, dtype=dtype, device="cpu")
    return buffer[:size].view(*shape)
