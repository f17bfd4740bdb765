"""Exchange between the ranks that share a global batch, for losses that couple its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class Ranks:
    """Differentiable exchange. Gradients are correct for a loss that is the sum of the losses of all ranks.

    Every rank must call the same methods in the same order. `count` is the number of ranks, and `most` the number of
    rows on the rank with the most.
    """

    count: int
    most: int

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [n, ...] of this rank, n <= most -> rows of all ranks in rank order, [N, ...].

        N is the same on every rank and known without communication: with several ranks, each rank's rows are padded
        with zeros to `most`. Gathered weights are thus zero for padding, as for stand-ins.
        """
        if self.count == 1:
            return rows
        missing = rows.new_zeros(self.most - len(rows), *rows.shape[1:])
        gathered: Tensor = _Gather.apply(torch.cat([rows, missing]))
        return gathered

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on each rank."""
        if self.count == 1:
            return values
        added: Tensor = _Sum.apply(values)
        return added


ALONE = Ranks(count=1, most=0)  # one process has all rows


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather(list(gathered.chunk(dist.get_world_size())), rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        added = _summed(gradient)
        return added.chunk(dist.get_world_size())[dist.get_rank()]


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    added = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(added)
    return added
