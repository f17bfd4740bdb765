"""Spearman's rank correlation, which is no mean over samples: it needs all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.metrics.files import append_rows
from pipeline.metrics.schema import LOSS, Measure, Schema

CORRELATION = Measure("rank_correlation", "Rank correlation", "higher")
REGRESSION = Schema((LOSS, Measure("mae", "Mean absolute error", "lower"), CORRELATION), selects="mae")


class RankCorrelation:
    """A `Collector` of values [B]."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.pairs: list[tuple[float, float]] = []

    def add(self, predicted: Tensor, batch: Any) -> None:
        counted = batch.weights > 0
        pairs = zip(predicted[counted].tolist(), batch.targets[self.field][counted].tolist(), strict=True)
        self.pairs += pairs

    def state(self) -> list[tuple[float, float]]:
        return self.pairs

    def merge(self, state: list[tuple[float, float]]) -> None:
        self.pairs += state

    def measures(self) -> dict[str, float]:
        ranks = [np.argsort(np.argsort(column)) for column in zip(*self.pairs, strict=True)]
        return {CORRELATION.name: float(np.corrcoef(*ranks)[0, 1])} if len(self.pairs) > 1 else {}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        append_rows(folder / "values.csv", ("model", "predicted", "truth"), [(model, *pair) for pair in self.pairs])
