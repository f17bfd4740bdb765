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
    """The number of queries whose class has another sample, how many found one among the first k, by k, and the mAP."""

    queries: int
    hits: dict[int, int]
    mean_average_precision: float


def retrieve(rows: Rows, at: Sequence[int], beat: Beat = silent) -> RetrievalCounts:
    """Use every sample as a query among all others of all ranks. Collective.

    A rank holds one block of all ranks' features at a time, so every block is sent again for each chunk of queries;
    every rank runs as many chunks as the rank with the most queries.
    """
    labels, first, asked = gathered(rows.labels), first_row(rows.features), unit(rows.features)
    sums = torch.zeros(2 + len(at), dtype=torch.float64, device=rows.features.device)
    at_once = max(CELLS_AT_ONCE // len(labels), 1)
    for start in range(0, max(counts_of_ranks(rows.labels)), at_once):
        beat()
        some = asked[start : start + at_once]
        numbers = torch.arange(first + start, first + start + len(some), device=labels.device)
        order = _order(some, rows.features, numbers)
        relevant = labels[order] == labels[numbers, None]  # [Q, N - 1], the most similar first
        sums += _sums(relevant, at)
    queries, precision, *hits = summed(sums).tolist()
    found = {k: int(count) for k, count in zip(at, hits, strict=True)}
    return RetrievalCounts(int(queries), found, precision / queries if queries else 0.0)


def _order(queries: Tensor, features: Tensor, numbers: Tensor) -> Tensor:
    """int64 [Q, N - 1]: the other rows, sorted by similarity to each query; `numbers` are the queries' row numbers.

    `features` are this rank's. Collective.
    """
    codes = torch.cat([ranked(queries, unit(block), start) for start, block in blocks_of_all(features)], dim=1)
    codes[torch.arange(len(queries), device=codes.device), numbers] = torch.iinfo(torch.int64).min  # query itself: last
    return codes.argsort(dim=1, descending=True)[:, :-1]


def _sums(relevant: Tensor, at: Sequence[int]) -> Tensor:
    """float64 [2 + len(at)]: number of queries with a match, sum of their average precisions, hits at each k."""
    total = relevant.sum(dim=1)
    ranks = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    precision = relevant.cumsum(dim=1).double() / ranks
    average = (precision * relevant).sum(dim=1) / total.clamp_min(1)
    counted = [(total > 0).sum(), average.sum(), *(relevant[:, :k].any(dim=1).sum() for k in at)]
    return torch.stack([value.double() for value in counted])
