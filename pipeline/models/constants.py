"""Small constants on a device, made once each: for every copy from pageable memory the host would wait for the GPU."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """fp32 [n]. Do not write to it."""
    with torch.inference_mode(False):  # else training could not use what a prediction made
        return torch.tensor(values, dtype=torch.float32, device=device)
