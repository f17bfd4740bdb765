"""Muon for matrices that are whole on each rank or partitioned over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod, sqrt
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.config.training import LARGEST_BUCKET
from pipeline.train.adamw import AdamW
from pipeline.train.flats import gather_collective

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024
ITERATIONS = 5
TYPICAL_UPDATE = 0.2  # the usual root mean square of AdamW's updates (Liu et al. 2025)


class Matrices(NamedTuple):
    """Stacked matrices to update, or this rank's part of them, and the parameter group that they have to themselves."""

    group: dict[str, Any]
    tensor: Tensor
    shape: tuple[int, int, int]  # number, rows, columns


class Muon(AdamW):
    """Muon (Jordan et al. 2024) for groups with the key `matrices`, AdamW for all others.

    A matrix moves along its Nesterov momentum, orthogonalised, so that each of its singular directions moves equally.
    This step is scaled to the root mean square of AdamW's, so that AdamW's learning rates and weight decays apply (Liu
    et al. 2025). The key `matrices` is the shape [number, rows, columns] of the group's only tensor, which may be flat.

    `partitioned` means that each rank holds an equal part of each flat tensor, the last one padded, as under ZeRO. All
    ranks must then call `step`: they gather the momentum of up to `LARGEST_BUCKET` values at a time, orthogonalise a
    share of these matrices each, and exchange the results. All of this happens in `dtype`; momentum is kept in fp32.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        *,
        partitioned: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(list(params), lr=lr, betas=betas, fused=True)
        self.momentum, self.partitioned, self.dtype = momentum, partitioned, dtype
        for group in self.param_groups:
            assert "matrices" not in group or len(group["params"]) == 1, "a group per tensor of matrices"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every tensor that has a gradient. Collective if the tensors are partitioned."""
        assert closure is None, "Muon needs no closure"
        matrices = [
            Matrices(group, tensor, group["matrices"])
            for group in self.param_groups
            for tensor in group["params"]
            if "matrices" in group and tensor.grad is not None
        ]
        for bucket in buckets(matrices):
            directions = [self._advance(tensor).to(self.dtype) for _, tensor, _ in bucket]
            shapes = [shape for _, _, shape in bucket]
            if self.partitioned:
                updates = orthogonalise_collective(directions, shapes)
            else:
                updates = [orthogonalise(one.view(shape)) for one, shape in zip(directions, shapes, strict=True)]
            for (group, tensor, shape), update in zip(bucket, updates, strict=True):
                tensor.mul_(1 - group["lr"] * group["weight_decay"])
                tensor.sub_(update.view_as(tensor), alpha=group["lr"] * TYPICAL_UPDATE * sqrt(max(shape[1:])))
        for _, tensor, _ in matrices:
            tensor.grad = None  # so that AdamW passes over it
        super().step()

    def _advance(self, tensor: Tensor) -> Tensor:
        """Add the gradient to the momentum; returns Nesterov's direction."""
        state, gradient = self.state[tensor], tensor.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(tensor)
        buffer: Tensor = state["momentum_buffer"]
        buffer.mul_(self.momentum).add_(gradient)
        return gradient.add(buffer, alpha=self.momentum)


def buckets(matrices: Iterable[Matrices]) -> Iterator[list[Matrices]]:
    """Consecutive tensors with up to `LARGEST_BUCKET` values together, or a single larger one."""
    bucket: list[Matrices] = []
    size = 0
    for one in matrices:
        if bucket and size + prod(one.shape) > LARGEST_BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(one)
        size += prod(one.shape)
    if bucket:
        yield bucket


def orthogonalise(matrices: Tensor) -> Tensor:
    """[number, rows, columns] -> the same with all singular values near 1 (about 0.7 to 1.2); zeros stay zeros.

    Approximates U V^T of the singular value decomposition U S V^T by Newton-Schulz iterations with the quintic
    polynomial of Jordan et al. 2024.
    """
    first, third, fifth = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    norms = torch.linalg.matrix_norm(x.float(), keepdim=True)
    x = x / norms.clamp(min=torch.finfo(torch.float32).tiny).to(x.dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        x = torch.baddbmm(x, gram, x, beta=first)
    return x.mT if tall else x


def orthogonalise_collective(parts: Sequence[Tensor], shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """This rank's part of each tensor of matrices, orthogonalised; the ranks share the work."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    wholes = gather_collective(torch.cat(list(parts))).split([len(part) for part in parts], dim=1)
    shares = divide([min(shape[1:]) * prod(shape) for shape in shapes], ranks)
    padded = [ranks * len(part) for part in parts]
    room = max(sum(padded[number] for number in share) for share in shares)
    done = parts[0].new_zeros(room)
    start = 0
    for number in shares[rank]:
        shape = shapes[number]
        update = orthogonalise(wholes[number].flatten()[: prod(shape)].view(shape))
        done[start : start + update.numel()] = update.flatten()
        start += padded[number]
    updates: dict[int, Tensor] = {}
    for theirs, share in zip(gather_collective(done), shares, strict=True):
        ours = theirs[: sum(padded[number] for number in share)].split([padded[number] for number in share])
        updates |= {number: whole.chunk(ranks)[rank] for number, whole in zip(share, ours, strict=True)}
    return [updates[number] for number in range(len(parts))]


def divide(costs: Sequence[int], shares: int) -> list[list[int]]:
    """The numbers of the costs in each share: from the highest cost down, each in the share with the lowest sum."""
    numbers: list[list[int]] = [[] for _ in range(shares)]
    sums = [0] * shares
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        lowest = sums.index(min(sums))
        numbers[lowest].append(number)
        sums[lowest] += costs[number]
    return numbers
