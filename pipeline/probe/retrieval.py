"""Each sample queries for the others of its class: recall among the first k, and mean average precision.

Legend: Q queries, N rows of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.probe.rows import Beat, Rows, blocks_of_all, counts_of_ranks, first_row, gathered, silent, summed
from pipeline.probe.similarity import ranked, unit

CELLS_AT_ONCE = 1 << 24  # similarities sorted at once


class RetrievalCounts(NamedTuple):
    """Queries whose class has another sample: how many found one among the first k, by k, and their precisions."""

    queries: int
    hits: dict[int, int]
    precisions: Tensor  # float64 [queries], the average precision of each, in sample order

    @property
    def mean_average_precision(self) -> float:
        return float(self.precisions.mean()) if self.queries else 0.0


def retrieve(rows: Rows, at: Sequence[int], beat: Beat = silent) -> RetrievalCounts:
    """Use every sample as a query among all others of all ranks. Collective.

    A rank holds one block of all ranks' features at a time, so every block is sent again for each chunk of queries;
    every rank runs as many chunks as the rank with the most queries.
    """
    labels, first, asked = gathered(rows.labels), first_row(rows.features), unit(rows.features)
    hits = torch.zeros(len(at), dtype=torch.float64, device=rows.features.device)
    precisions = [hits[:0]]
    at_once = max(CELLS_AT_ONCE // len(labels), 1)
    for start in range(0, max(counts_of_ranks(rows.labels)), at_once):
        beat()
        some = asked[start : start + at_once]
        numbers = torch.arange(first + start, first + start + len(some), device=labels.device)
        order = _order(some, rows.features, numbers)
        relevant = labels[order] == labels[numbers, None]  # [Q, N - 1], the most similar first
        hits += torch.stack([relevant[:, :k].any(dim=1).sum() for k in at])
        precisions.append(_precisions(relevant))
    found = {k: int(count) for k, count in zip(at, summed(hits).tolist(), strict=True)}
    every = gathered(torch.cat(precisions))
    return RetrievalCounts(len(every), found, every)


def _order(queries: Tensor, features: Tensor, numbers: Tensor) -> Tensor:
    """int64 [Q, N - 1]: the other rows, sorted by similarity to each query; `numbers` are the queries' row numbers.

    `features` are this rank's. Collective.
    """
    codes = torch.cat([ranked(queries, unit(block), start) for start, block in blocks_of_all(features)], dim=1)
    codes[torch.arange(len(queries), device=codes.device), numbers] = torch.iinfo(torch.int64).min  # query itself: last
    return codes.argsort(dim=1, descending=True)[:, :-1]


def _precisions(relevant: Tensor) -> Tensor:
    """float64: the average precision of each query that has a relevant sample."""
    total = relevant.sum(dim=1)
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    precision = relevant.cumsum(dim=1).double() / ranks
    return ((precision * relevant).sum(dim=1) / total)[total > 0]
