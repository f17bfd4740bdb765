"""Caches small constants on a device, because every copy from pageable memory makes the host wait for the GPU."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """fp32 [n]. Do not write to it."""
    with torch.inference_mode(False):  # otherwise training could not use a tensor created in inference mode
        return torch.tensor(values, dtype=torch.float32, device=device)
