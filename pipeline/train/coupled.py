"""The backward pass of a loss that couples the samples of the global batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.stream.batch import Batch
from pipeline.tasks.base import Outputs, TaskModule
from pipeline.tasks.ranks import Ranks


@dataclass(frozen=True)
class Coupling:
    """A rank's part of a coupled loss, and the gradients of the whole loss with respect to this rank's inputs to it."""

    loss: Tensor
    sums: Tensor  # float64 [S]
    of_rows: Mapping[str, Tensor]  # [n, ...] of the rank's share
    of_shared: Mapping[str, Tensor]

    def pull(self, outputs: Outputs, start: int) -> Tensor:
        """A scalar with these gradients with respect to the outputs of a micro-batch whose rows begin at `start`.

        Shared outputs contribute in the first micro-batch only, but stay in the graph of each so that every backward
        pass reaches the same parameters.
        """
        first = start == 0
        parts = [
            (outputs.rows[name] * whole[start:][: len(outputs.rows[name])]) for name, whole in self.of_rows.items()
        ]
        parts += [outputs.shared[name] * gradient * first for name, gradient in self.of_shared.items()]
        return torch.stack([part.sum() for part in parts]).sum()


def couple(task: TaskModule, outputs: Sequence[Outputs], weights: Tensor, ranks: Ranks, seed: int) -> Coupling:
    """The coupled loss of all micro-batches of a rank; `weights`, fp32 [n], are the weights of its rows."""
    rows = {name: leaf(torch.cat([each.rows[name] for each in outputs])) for name in outputs[0].rows}
    shared = {name: leaf(value) for name, value in outputs[0].shared.items()}
    found = task.couple(rows, shared, weights, ranks, seed)
    leaves = {name: value for name, value in (rows | shared).items() if value.requires_grad}
    gradients = torch.autograd.grad(found.loss, list(leaves.values()), materialize_grads=True)
    named = dict(zip(leaves, gradients, strict=True))
    of_rows, of_shared = ({name: named[name] for name in each if name in named} for each in (rows, shared))
    return Coupling(found.loss.detach(), found.sums, of_rows, of_shared)


def leaf(values: Tensor) -> Tensor:
    """A detached leaf that collects the gradient; integers, such as ids of equal captions, have none."""
    return values.detach().requires_grad_(values.is_floating_point())


def backward_coupled(
    task: TaskModule,
    forward: Callable[[Batch], Outputs],
    backward: Callable[[Tensor], None],
    micro_batches: Sequence[Batch],
    scales: Tensor,
    ranks: Ranks,
    seed: int,
) -> Tensor:
    """Forward and backward pass of a rank's share with gradient caching (Gao et al. 2021).

    The coupled loss needs the rows of all samples at once, but only the activations of one micro-batch fit into memory.
    So multiple micro-batches are encoded twice: first without gradients to get their rows, then one by one to
    backpropagate the gradients of those rows. Random draws are keyed, so both passes are identical. A single
    micro-batch is encoded only once.

    `scales`, fp32 [T], multiply the terms of `Outputs.losses`; `seed` seeds the draws of `couple`. Returns float64 [S],
    the sums of the task's measures over the share.
    """
    with torch.set_grad_enabled(len(micro_batches) == 1):
        outputs = [forward(micro) for micro in micro_batches]
    weights = torch.cat([micro.weights for micro in micro_batches])
    coupling = couple(task, outputs, weights, ranks, seed)
    sums, start = coupling.sums, 0
    for micro in micro_batches:
        found = outputs[0] if len(micro_batches) == 1 else forward(micro)
        backward((found.losses * scales).sum() + ranks.count * coupling.pull(found, start))
        sums, start = sums + found.sums, start + len(micro.weights)
    return sums
