"""A teacher that is the moving average of the weights of its student (Tarvainen & Valpola 2017)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.checkpoints.shard_file import Span
from pipeline.tasks.base import TaskModule
from pipeline.train.engine import Engine
from pipeline.train.flats import gather_collective


class MovingTeacher:
    """The fp32 average of each flat of master weights, partitioned like `ShardedEMA`, and the teacher built from them.

    The teacher is whole on every rank, in the model's compute dtype. The weight of the old average rises from the
    task's `momentum` to 1 over `total_steps` steps along a cosine (BYOL, Grill et al. 2020). Every rank must create,
    update and refresh it alike.
    """

    def __init__(self, engine: Engine, task: TaskModule, total_steps: int) -> None:
        assert task.follower is not None, "the task has no teacher that follows its model"
        self._engine, self._holder = engine, task.follower
        self._momentum, self._total_steps = task.momentum, total_steps
        self._live = [flat.weights for flat in engine.flats]
        self.averages: list[Tensor] = [weights.clone() for weights in self._live]
        self._spans = self._gather_spans()
        self.refresh_collective()

    def _gather_spans(self) -> list[list[list[Span]]]:
        """The spans of each flat on each rank; without ZeRO only once, as all ranks hold the same."""
        mine = [flat.spans for flat in self._engine.flats]
        if self._engine.zero_stage == 0:
            return [[spans] for spans in mine]
        every: list[list[list[Span]]] = [mine] * dist.get_world_size()
        dist.all_gather_object(every, mine)
        return [list(spans) for spans in zip(*every, strict=True)]

    def momentum_at(self, step: int) -> float:
        """The weight of the old average in the update after step number `step` (from 1)."""
        progress = min((step - 1) / max(self._total_steps - 1, 1), 1.0)
        return 1 - (1 - self._momentum) * 0.5 * (1 + math.cos(math.pi * progress))

    @torch.no_grad()
    def update_collective(self, step: int) -> None:
        """Move the averages towards the weights after optimiser step number `step`, and update the teacher."""
        torch._foreach_lerp_(self.averages, self._live, 1 - self.momentum_at(step))
        self.refresh_collective()

    @torch.no_grad()
    def refresh_collective(self) -> None:
        """Write the averages of all ranks into the teacher's weights."""
        teacher: nn.Module = self._holder.model_like(next(self._engine.model.parameters()))
        weights = {name: parameter.data.view(-1) for name, parameter in teacher.named_parameters()}
        dtype = next(iter(weights.values())).dtype
        for average, of_ranks in zip(self.averages, self._spans, strict=True):
            values = self._of_all_ranks(average.to(dtype))
            for flat, spans in zip(values, of_ranks, strict=True):
                for span in spans:
                    part = flat[span.offset : span.offset + span.numel]
                    weights[span.parameter][span.start : span.start + span.numel].copy_(part)

    def _of_all_ranks(self, flat: Tensor) -> Tensor:
        """Flats [n] of all ranks as [ranks, n]; under ZeRO all have the same size. Without ZeRO [1, n]."""
        if self._engine.zero_stage == 0:
            return flat[None]
        return gather_collective(flat)
