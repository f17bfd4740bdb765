"""Regression by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.metrics.collector import Collector
from pipeline.metrics.rank_correlation import RankCorrelation
from pipeline.models.spec import Pair
from pipeline.tasks.base import Evaluated, Outputs, TaskModule, Tensors


class Regression(TaskModule):
    """Targets: `rating`, fp32 [B]."""

    sum_names = ("loss", "absolute", "samples")

    def loss(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Outputs:
        errors = self._values(views["image"]) - targets["rating"]
        losses = errors.square() * weights
        return Outputs(losses.sum()[None], self._sums(losses, errors, weights))

    def evaluate(self, views: Tensors, targets: Tensors, weights: Tensor, keys: Tensors) -> Evaluated:
        values = self._values(views["image"])
        errors = values - targets["rating"]
        return Evaluated(self._sums(errors.square() * weights, errors, weights), values)

    def means(self, sums: Tensor) -> dict[str, float]:
        loss, absolute, samples = sums.tolist()
        return {"loss": loss / max(samples, 1.0), "mae": absolute / max(samples, 1.0)}

    def collectors(self, *, validation: bool) -> dict[str, Collector]:
        return {"ranks": RankCorrelation("rating")}

    def predict(self, images: Tensor, sizes: Sequence[Pair], **options: Any) -> list[float]:
        """The value of each image."""
        values: list[float] = self._values(images).tolist()
        return values

    def record(self, predicted: float) -> dict[str, Any]:
        return {"value": predicted}

    def _values(self, images: Tensor) -> Tensor:
        """Normalised [B, C, H, W] -> fp32 [B]."""
        values: Tensor = self.model(images).float()[:, 0]
        return values

    @torch.no_grad()
    def _sums(self, losses: Tensor, errors: Tensor, weights: Tensor) -> Tensor:
        """float64 [3]."""
        return torch.stack([losses.sum(), (errors.abs() * weights).sum(), weights.sum()]).double()
