"""Dropout whose masks are drawn from the samples' keys: equal in any batch, on any rank and when recomputed.

Legend: B samples, L layers, n values of a sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipeline.models.drop_path import GOLDEN, MULTIPLIERS, SHIFTS, mix, sample_keys
from pipeline.models.execution import in_pieces, scratch

Site = Literal["weights", "attended", "hidden", "fed"]  # of a layer, in the order of a forward pass
SITES: tuple[Site, ...] = ("weights", "attended", "hidden", "fed")
DROPOUT = 0x44726F70  # "Drop": makes the masks independent of other draws from the same keys
DRAWS = 4  # 16-bit draws in one number of a key's stream
PIECE_WORDS = 1 << 13  # 64-bit numbers generated at once on a CPU: they stay in its cache


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
    kept = _draws_above(keys, x[0].numel(), dropped - (1 << 15), fast=in_pieces(x)).view(x.shape)
    return (x * kept).mul_((1 << 16) / ((1 << 16) - dropped))


def _draws_above(keys: Tensor, count: int, threshold: int, fast: bool) -> Tensor:
    """Bool [B, count]: which of each key's first draws, signed 16-bit integers, reach the threshold."""
    words = -(-count // DRAWS)
    steps = torch.arange(1, words + 1, device=keys.device) * GOLDEN
    if not fast:
        return mix(keys[:, None] + steps).view(torch.int16)[:, :count] >= threshold
    kept = torch.empty(len(keys), words * DRAWS, dtype=torch.bool)
    rows = max(PIECE_WORDS // words, 1)
    for row in range(0, len(keys), rows):
        for column in range(0, words, PIECE_WORDS):
            numbers = _numbers(keys[row : row + rows, None], steps[column : column + PIECE_WORDS])
            place = kept[row : row + rows, DRAWS * column : DRAWS * (column + numbers.shape[1])]
            torch.ge(numbers.view(torch.int16), threshold, out=place)
    return kept[:, :count]


def _numbers(keys: Tensor, steps: Tensor) -> Tensor:
    """`mix(keys + steps)` of keys [b, 1] and steps [w], in a scratch buffer."""
    x = torch.add(keys, steps, out=scratch("numbers", (len(keys), len(steps)), torch.int64))
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, None), strict=True):
        shifted = torch.bitwise_right_shift(x, shift, out=scratch("shifted", x.shape, torch.int64))
        x ^= shifted.bitwise_and_((1 << (64 - shift)) - 1)
        if multiplier is not None:
            x *= multiplier
    return x
