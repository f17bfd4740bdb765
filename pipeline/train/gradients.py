"""The gradients of small models: one fp32 block, reduced once per step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class GradientBlock:
    """Accumulates the gradients of all micro-batches in one fp32 block per rank, instead of in DeepSpeed's hooks.

    Under ZeRO-1 and ZeRO-2 DeepSpeed runs a hook per parameter, which copies its gradient twice, and ZeRO-2 also
    reduces after every micro-batch. For a small model that costs up to a quarter of the step. The block costs a few
    operations and one all-reduce per step. It holds a whole fp32 gradient on every rank, no more than the bucket that
    it replaces, but nothing is reduced until the backward pass is over. `zero` is a `DeepSpeedZeroOptimizer`.
    """

    def __init__(self, zero: Any, group: dist.ProcessGroup) -> None:
        for hook in zero._grad_acc_hooks:
            hook.remove()
        self._zero, self._group = zero, group
        self._ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        flats: list[Tensor] = zero.bit16_groups_flat
        self._block = torch.zeros(sum(flat.numel() for flat in flats), dtype=torch.float32, device=flats[0].device)
        groups = self._block.split([flat.numel() for flat in flats])
        self._partitions = [part.chunk(self._ranks)[rank] for part in groups]  # this rank's part of every group
        self._parameters: list[Tensor] = [weight for weights in zero.bit16_groups for weight in weights]
        # A gradient has the same place in its group's part of the block as the parameter in the group's flat weights.
        self._gradients = [
            part.as_strided(weight.shape, weight.stride(), part.storage_offset() + offset_in(flat, weight))
            for weights, flat, part in zip(zero.bit16_groups, flats, groups, strict=True)
            for weight in weights
        ]
        zero.scaled_global_norm = self._norm
        # ZeRO-2 would collect the results of its hooks here.
        zero.finalize_gradient_accumulation_boundary = lambda: zero.set_gradient_accumulation_boundary(True)

    def accumulate(self) -> None:
        """Add the gradients of a backward pass and free them."""
        pairs = [
            (total, weight.grad)
            for total, weight in zip(self._gradients, self._parameters, strict=True)
            if weight.grad is not None
        ]
        torch._foreach_add_([total for total, _ in pairs], [gradient for _, gradient in pairs])
        for weight in self._parameters:
            weight.grad = None

    def reduce_collective(self) -> None:
        """Average over ranks, and hand DeepSpeed this rank's partition of every group for its step."""
        if self._ranks > 1:
            self._block.div_(self._ranks)
            dist.all_reduce(self._block, group=self._group)
        for number, partition in enumerate(self._partitions):
            self._zero.averaged_gradients[number] = SimpleNamespace(flat_partition=partition)

    def clear(self) -> None:
        """Start the next step's sum."""
        self._block.zero_()

    def _norm(self) -> Tensor:
        """Norm of the averaged gradients, which every rank has; DeepSpeed skips the step if it is not finite."""
        return torch.linalg.vector_norm(self._block)


def offset_in(flat: Tensor, weight: Tensor) -> int:
    """Where a view of a flat tensor begins in it."""
    return int(weight.storage_offset() - flat.storage_offset())
