"""Each sample asks for the others of its class: recall among the first k, and mean average precision.

Legend: Q queries, N rows of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.probe.rows import Beat, Rows, first_row, gathered, silent, summed
from pipeline.probe.similarity import ranked, unit

CELLS_AT_ONCE = 1 << 23  # similarities that are sorted at once


class Found(NamedTuple):
    """Queries whose class has another sample, how many of them found one among the first k, by k, and the mAP."""

    queries: int
    hits: dict[int, int]
    mean_average_precision: float


def retrieve(rows: Rows, at: Sequence[int], beat: Beat = silent) -> Found:
    """Every sample is a query among all others of all ranks. Collective."""
    features, labels, first = unit(gathered(rows.features)), gathered(rows.labels), first_row(rows.features)
    sums = torch.zeros(2 + len(at), dtype=torch.float64, device=rows.features.device)
    numbers = torch.arange(first, first + len(rows.labels), device=labels.device)
    for some in numbers.split(max(CELLS_AT_ONCE // len(labels), 1)):
        beat()
        order = _order(features, some)
        relevant = labels[order] == labels[some, None]  # [Q, N - 1], the most similar first
        sums += _sums(relevant, at)
    queries, precision, *hits = summed(sums).tolist()
    found = {k: int(count) for k, count in zip(at, hits, strict=True)}
    return Found(int(queries), found, precision / queries if queries else 0.0)


def _order(features: Tensor, queries: Tensor) -> Tensor:
    """int64 [Q, N - 1]: the other rows in the order of their similarity to each query."""
    codes = ranked(features[queries], features)
    codes[torch.arange(len(queries), device=codes.device), queries] = torch.iinfo(torch.int64).min  # itself, last
    return codes.argsort(dim=1, descending=True)[:, :-1]


def _sums(relevant: Tensor, at: Sequence[int]) -> Tensor:
    """float64 [2 + len(at)]: queries with anything to find, their average precisions, and the hits at each k."""
    total = relevant.sum(dim=1)
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    precision = relevant.cumsum(dim=1).double() / ranks
    average = (precision * relevant).sum(dim=1) / total.clamp_min(1)
    counted = [(total > 0).sum(), average.sum(), *(relevant[:, :k].any(dim=1).sum() for k in at)]
    return torch.stack([value.double() for value in counted])
