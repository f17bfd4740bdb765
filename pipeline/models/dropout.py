"""Dropout whose masks are drawn from the samples' keys: equal in any batch, on any rank and when recomputed.

Legend: B samples.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.models.arithmetic import draws_reach
from pipeline.models.drop_path import sample_keys

Site = Literal["weights", "attended", "hidden", "fed"]  # of a layer, in the order of a forward pass
SITES: tuple[Site, ...] = ("weights", "attended", "hidden", "fed")
DROPOUT = 0x44726F70  # "Drop": makes the masks independent of other draws from the same keys


def layer_keys(keys: Tensor, layer: int) -> Tensor:
    """int64 [4, B] keys of a layer's sites, derived from the samples' keys (int64 [B])."""
    return torch.stack([sample_keys(DROPOUT + len(SITES) * layer + site, keys) for site in range(len(SITES))])


def dropout(x: Tensor, keys: Tensor | None, rate: float) -> Tensor:
    """Drops values of x [B, ...] at `rate`, scales the others to keep the expectation (Srivastava et al. 2014).

    A sample's mask depends only on its key (int64 [B]). Returns `x` unchanged without keys or at rate 0.
    """
    if keys is None or not rate:
        return x
    assert len(keys) == len(x), f"{len(keys)} keys for a batch of {len(x)}"
    dropped = min(round(rate * (1 << 16)), (1 << 16) - 1)  # of 65,536 draws
    kept = draws_reach(dropped - (1 << 15), keys, x[0].numel()).view(x.shape)
    return (x * kept).mul_((1 << 16) / ((1 << 16) - dropped))
