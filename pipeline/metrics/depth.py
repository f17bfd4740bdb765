"""Depth error per measured pixel: AbsRel, RMSE and delta < 1.25 (Eigen et al. 2014).

All are sums over pixels, which add up over images, micro-batches and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    """The measures from `depth_errors`; 0 if nothing was measured."""
    pixels, relative, squared, within = sums
    pixels = max(pixels, 1.0)
    return {"abs_rel": relative / pixels, "rmse": math.sqrt(squared / pixels), "delta1": within / pixels}
