"""Features of a data set, distributed over the ranks in sample order, and the exchange of rows between ranks.

Legend: n rows of a rank, N of all ranks, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

SENT_AT_ONCE = 8192  # rows that a rank holds besides its own

Beat = Callable[[], None]  # a sign of life, at least every few seconds


def silent() -> None:
    """Give no sign of life."""


class Rows(NamedTuple):
    """The good samples of one rank. Rank 0 has the first of the data set, rank 1 the next, and so on."""

    features: Tensor  # fp32 [n, D]
    labels: Tensor  # int64 [n]

    def where(self, chosen: Tensor) -> Rows:
        """The rows chosen by a bool [n]."""
        return Rows(self.features[chosen], self.labels[chosen])


def counts_of_ranks(rows: Tensor) -> list[int]:
    """The number of rows on each rank. Collective."""
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    return [int(count) for count in counts]


def gathered(rows: Tensor) -> Tensor:
    """[n, ...] -> [N, ...]: all ranks' rows in rank order, on every rank. Collective."""
    counts = counts_of_ranks(rows)
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def blocks_of_all(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """All ranks' rows in blocks: (number of the first among all N, [at most `SENT_AT_ONCE`, ...]).

    Collective: every rank must consume all blocks.
    """
    first = 0
    for rank, count in enumerate(counts_of_ranks(rows)):
        for start in range(0, count, SENT_AT_ONCE):
            size = min(SENT_AT_ONCE, count - start)
            mine = rank == dist.get_rank()
            block = rows[start : start + size].contiguous() if mine else rows.new_empty(size, *rows.shape[1:])
            if dist.get_world_size() > 1:
                dist.broadcast(block, rank)
            yield first + start, block
        first += count


def first_row(rows: Tensor) -> int:
    """The number of this rank's first row among all ranks' rows. Collective."""
    return sum(counts_of_ranks(rows)[: dist.get_rank()])


def summed(values: Tensor) -> Tensor:
    """The sum over ranks. Collective."""
    total = values.clone()
    dist.all_reduce(total)
    return total
