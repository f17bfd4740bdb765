"""Which classes a model confuses, at a cost that does not grow with the square of their number."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_PENDING = 1 << 20  # pairs that wait to be counted; 8 bytes each


class ConfusionCounts:
    """Counts of the (true class, predicted class) pairs that occur: at most one per sample, of K * K possible ones.

    They add up over batches and, through `merge`, over ranks.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._codes = torch.empty(0, dtype=torch.int64)  # true * K + predicted, ascending
        self._counts = torch.empty(0, dtype=torch.int64)
        self._pending: list[Tensor] = []
        self._num_pending = 0

    def add(self, true: Tensor, predicted: Tensor) -> None:
        """Count samples, int64 [n] each, on any device; not those whose true class is -1."""
        self._pending.append((true * self.num_classes + predicted).where(true >= 0, -1))
        self._num_pending += len(true)
        if self._num_pending >= MAX_PENDING:
            self._count()

    def table(self) -> Tensor:
        """int64 [pairs, 3] on the CPU: true class, predicted class, count; in the order of the classes."""
        self._count()
        true, predicted = self._codes // self.num_classes, self._codes % self.num_classes
        return torch.stack([true, predicted, self._counts], dim=1)

    def merge(self, table: Tensor) -> None:
        """Add what another rank has counted."""
        self._count()
        codes = torch.cat([self._codes, table[:, 0] * self.num_classes + table[:, 1]])
        self._sum_up(codes, torch.cat([self._counts, table[:, 2]]))

    def _count(self) -> None:
        if self._pending:
            codes = torch.cat(self._pending).cpu()
            codes = codes[codes >= 0]
            self._pending, self._num_pending = [], 0
            self._sum_up(torch.cat([self._codes, codes]), torch.cat([self._counts, torch.ones_like(codes)]))

    def _sum_up(self, codes: Tensor, counts: Tensor) -> None:
        self._codes, places = codes.unique(return_inverse=True)
        self._counts = torch.zeros_like(self._codes).index_add_(0, places, counts)
