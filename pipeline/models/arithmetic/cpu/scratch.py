"""Short-lived buffers, reused from call to call."""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


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


def cast(x: Tensor, purpose: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Contiguous x in another dtype, in a scratch buffer."""
    return scratch(purpose, x.shape, dtype).copy_(x)
