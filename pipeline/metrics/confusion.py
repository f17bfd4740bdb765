"""Which classes a model confuses, at a cost that does not grow with the square of their number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.files import write_whole
from pipeline.metrics.files import CONFUSION, PER_CLASS, append_rows

MAX_PENDING = 1 << 20  # pairs waiting to be counted, 8 bytes each


class ConfusionCounts:
    """Counts of the (true class, predicted class) pairs that occur: at most one per sample, out of K * K.

    A `Collector` of logits [B, K]; counts add up over batches and, through `merge`, over ranks.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._codes = torch.empty(0, dtype=torch.int64)  # true * K + predicted, ascending
        self._counts = torch.empty(0, dtype=torch.int64)
        self._pending: list[Tensor] = []
        self._num_pending = 0

    def add(self, predicted: Tensor, batch: Any) -> None:
        """Count the samples of a batch by their most likely class."""
        self.add_pairs(batch.targets["label"].where(batch.weights > 0, -1), predicted.argmax(dim=-1))

    def add_pairs(self, true: Tensor, predicted: Tensor) -> None:
        """Count samples, int64 [n] each, on any device; ignores those whose true class is -1."""
        self._pending.append((true * self.num_classes + predicted).where(true >= 0, -1))
        self._num_pending += len(true)
        if self._num_pending >= MAX_PENDING:
            self._count()

    def table(self) -> Tensor:
        """int64 [pairs, 3] on the CPU: true class, predicted class, count; in class order."""
        self._count()
        true, predicted = self._codes // self.num_classes, self._codes % self.num_classes
        return torch.stack([true, predicted, self._counts], dim=1)

    def state(self) -> Tensor:
        return self.table()

    def merge(self, state: Tensor) -> None:
        """Add another rank's counts: its table."""
        self._count()
        codes = torch.cat([self._codes, state[:, 0] * self.num_classes + state[:, 1]])
        self._sum_up(codes, torch.cat([self._counts, state[:, 2]]))

    def measures(self) -> dict[str, float]:
        """None: accuracy already covers these counts."""
        return {}

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Add the model's table to `confusion.npz` and its figures per class to `per_class.csv`.

        The arrays are `classes` and, in model order, `arr_0`, `arr_1`, ..., int64 [pairs, 3] each. Each row holds the
        samples of a class, how many were right, and how often it was predicted.
        """
        table = self.table().numpy()
        path = folder / CONFUSION
        kept: dict[str, Any] = {"classes": np.array(classes)}
        if path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                kept = dict(arrays)
        kept[f"arr_{len(kept) - 1}"] = table
        write_whole(path, lambda draft: np.savez_compressed(draft, **kept))
        true, predicted, counts = table.T
        columns = [
            np.bincount(chosen, weights=weights, minlength=len(classes)).astype(np.int64).tolist()
            for chosen, weights in ((true, counts), (true, counts * (true == predicted)), (predicted, counts))
        ]
        rows = [(model, *row) for row in zip(classes, *columns, strict=True)]
        append_rows(folder / PER_CLASS, ("model", "class", "samples", "right", "predicted"), rows)

    def _count(self) -> None:
        if self._pending:
            codes = torch.cat(self._pending).cpu()
            codes = codes[codes >= 0]
            self._pending, self._num_pending = [], 0
            self._sum_up(torch.cat([self._codes, codes]), torch.cat([self._counts, torch.ones_like(codes)]))

    def _sum_up(self, codes: Tensor, counts: Tensor) -> None:
        self._codes, places = codes.unique(return_inverse=True)
        self._counts = torch.zeros_like(self._codes).index_add_(0, places, counts)
