"""Exponential moving average of the weights, partitioned over the ranks like the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.train.flats import Flat


class ShardedEMA:
    """The fp32 average of each flat of master weights: 4 bytes per parameter over all ranks (on each without ZeRO).

    `decay` is the weight of the old average (Polyak & Juditsky 1992), capped at (1 + t) / (10 + t).
    """

    def __init__(self, flats: list[Flat], decay: float) -> None:
        self.decay = decay
        self._live = [flat.weights for flat in flats]
        self.averages: list[Tensor] = [weights.clone() for weights in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after optimiser step number `step` (from 1)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, self._live, weight)
