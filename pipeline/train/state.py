"""The state of one rank that a checkpoint holds, as tensors with a layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.checkpoints.shard_file import WEIGHTS, Span
from pipeline.checkpoints.state_reader import StateReader
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.flats import Flat, shapes_of, slice_span
from pipeline.train.teacher import MovingTeacher

EMA, TEACHER = "ema", "teacher"


class UntrainedTensor(NamedTuple):
    """A flat tensor that no optimiser updates, with its layout, and whether it is replicated on every rank."""

    value: Tensor
    spans: list[Span]
    replicated: bool


class TrainState:
    """This rank's master weights, optimiser state, average and teacher, with the model's frozen parameters and buffers.

    Schedules, generators and the position in the data are functions of the step, so the manifest covers them.
    """

    def __init__(self, engine: Engine, ema: ShardedEMA | None, teacher: MovingTeacher | None = None) -> None:
        self.engine, self.ema, self.teacher = engine, ema, teacher
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.shapes = shapes_of(engine.model)
        self._untrained = list(self._find_untrained(engine.model))

    def _find_untrained(self, module: nn.Module) -> Iterator[UntrainedTensor]:
        """Tensors that the optimiser does not hold: buffers and frozen parameters, which ZeRO-3 also slices."""
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad and hasattr(parameter, "ds_tensor"):
                yield UntrainedTensor(
                    parameter.ds_tensor.data, slice_span(name, parameter, self.rank, 0), replicated=False
                )
            elif not parameter.requires_grad:
                yield UntrainedTensor(parameter.data.view(-1), [Span(name, 0, 0, parameter.numel())], replicated=True)
        for name, buffer in module.named_buffers():
            yield UntrainedTensor(buffer.view(-1), [Span(name, 0, 0, buffer.numel())], replicated=True)

    def parts(self) -> tuple[list[list[Span]], dict[str, Tensor]]:
        """Layout and live tensors that this rank writes; writing replicated tensors is divided among the ranks."""
        layout: list[list[Span]] = []
        tensors: dict[str, Tensor] = {}
        for number, flat in enumerate(self.engine.flats):
            if self.engine.zero_stage > 0 or number % self.world_size == self.rank:
                named = {f"{len(layout)}/{key}": value for key, value in self._of_flat(number, flat).items()}
                tensors |= named
                layout.append(flat.spans)
        for number, untrained in enumerate(self._untrained):
            if not untrained.replicated or number % self.world_size == self.rank:
                tensors[f"{len(layout)}/{WEIGHTS}"] = untrained.value
                layout.append(untrained.spans)
        return layout, tensors

    def _of_flat(self, number: int, flat: Flat) -> dict[str, Tensor]:
        values = {key: value for key, value in flat.state.items() if isinstance(value, Tensor)}
        state = {key: value.view(-1) if value.dim() else value for key, value in values.items()}
        kept = {EMA: self.ema, TEACHER: self.teacher}
        averages = {key: average.averages[number] for key, average in kept.items() if average}
        return {WEIGHTS: flat.weights, **state, **averages}

    @torch.no_grad()
    def load_collective(self, reader: StateReader) -> None:
        """Load everything from a checkpoint written by any number of ranks under any ZeRO stage."""
        for number, flat in enumerate(self.engine.flats):
            self._load_optimizer(flat, reader)
            tensors = {key: value for key, value in self._of_flat(number, flat).items() if value.dim()}
            for span in flat.spans:
                for key, value in tensors.items():
                    part = value[span.offset : span.offset + span.numel]
                    reader.read_into(part, span.parameter, span.start, key)
        for untrained in self._untrained:
            for span in untrained.spans:
                reader.read_into(untrained.value[: span.numel], span.parameter, span.start, WEIGHTS)
        self.engine.refresh_collective()
        if self.teacher:
            self.teacher.refresh_collective()

    def _load_optimizer(self, flat: Flat, reader: StateReader) -> None:
        """Allocate the state that torch's optimisers only create in their first step, and set its scalars."""
        names = {span.parameter for span in flat.spans}
        keys = {key for name in names for key, _ in reader.kinds(name)} - {WEIGHTS, EMA, TEACHER}
        for key in keys:
            flat.state[key] = torch.zeros_like(flat.key, requires_grad=False)
        if keys:
            for key, value in reader.scalars.items():
                flat.state[key] = value.to(flat.weights.device, copy=True)
