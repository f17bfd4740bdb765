"""Depth error per measured pixel: AbsRel, RMSE and delta < 1.25 (Eigen et al. 2014).

All are sums over pixels, which add up over images, micro-batches and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.metrics.bootstrap import Interval, ResampledSums
from pipeline.metrics.full_maps import full_maps
from pipeline.metrics.schema import LOSS, Measure, Schema

if TYPE_CHECKING:
    from torch import Tensor

DEPTH = Schema(
    (
        LOSS,
        Measure("abs_rel", "AbsRel", "lower"),
        Measure("rmse", "RMSE (m)", "lower"),
        Measure("delta1", "Delta < 1.25", "higher", share=True),
    ),
    selects="abs_rel",
)
RATIO = 1.25


def depth_errors(metres: Tensor, truth: Tensor) -> Tensor:
    """float64 [4]: the number of measured pixels, and over them |d - t| / t, (d - t)^2, and how many are within RATIO.

    `metres` d and `truth` t have the same shape; t is 0 where nothing was measured.
    """
    import torch

    measured = truth > 0
    d, t = (depth.double().where(measured, 1) for depth in (metres, truth))
    errors = torch.stack([torch.ones_like(t), (d - t).abs() / t, (d - t).square(), torch.maximum(d / t, t / d) < RATIO])
    return (errors * measured).flatten(1).sum(dim=1)


def depth_measures(sums: Sequence[float]) -> dict[str, float]:
    """The measures from `depth_errors`; none if nothing was measured."""
    pixels, relative, squared, within = sums
    if not pixels:
        return {}
    return {"abs_rel": relative / pixels, "rmse": math.sqrt(squared / pixels), "delta1": within / pixels}


class DepthIntervals:
    """A `Collector` of maps in metres [H, W] for the intervals of the measures, which come from the task's sums."""

    def __init__(self) -> None:
        self.resampled = ResampledSums(4)

    def add(self, predicted: Sequence[Tensor], batch: Any) -> None:
        truths, slots, weights = full_maps(batch.targets, "depth_full"), batch.slots.tolist(), batch.weights.tolist()
        for metres, truth, slot, weight in zip(predicted, truths, slots, weights, strict=True):
            if weight:
                self.resampled.add(slot, depth_errors(metres, truth).cpu().numpy())

    def state(self) -> ResampledSums:
        return self.resampled

    def merge(self, state: ResampledSums) -> None:
        self.resampled.merge(state)

    def measures(self) -> dict[str, float]:
        return {}

    def intervals(self) -> dict[str, Interval]:
        return self.resampled.intervals(lambda sums: depth_measures(sums.tolist()))

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Nothing."""
