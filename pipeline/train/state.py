"""All that a run must keep of one rank, as tensors with a layout: what a checkpoint holds."""

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


class Other(NamedTuple):
    """A flat tensor that no optimiser updates, with its layout; whether every rank has it alike."""

    value: Tensor
    spans: list[Span]
    replicated: bool


class TrainState:
    """Master weights, optimiser state, average and teacher of this rank, with what the model has besides.

    Schedules, generators and the place in the data are functions of the step, so the manifest's numbers hold them.
    """

    def __init__(self, engine: Engine, ema: ShardedEMA | None, teacher: MovingTeacher | None = None) -> None:
        self.engine, self.ema, self.teacher = engine, ema, teacher
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.shapes = shapes_of(engine.model)
        self._others = list(self._find_others(engine.model))

    def _find_others(self, module: nn.Module) -> Iterator[Other]:
        """What the optimiser does not hold: frozen parameters, which ZeRO-3 slices too, and buffers."""
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad and hasattr(parameter, "ds_tensor"):
                yield Other(parameter.ds_tensor.data, slice_span(name, parameter, self.rank, 0), replicated=False)
            elif not parameter.requires_grad:
                yield Other(parameter.data.view(-1), [Span(name, 0, 0, parameter.numel())], replicated=True)
        for name, buffer in module.named_buffers():
            yield Other(buffer.view(-1), [Span(name, 0, 0, buffer.numel())], replicated=True)

    def parts(self) -> tuple[list[list[Span]], dict[str, Tensor]]:
        """Layout and live tensors of what this rank writes; what all ranks have alike is shared out among them."""
        layout: list[list[Span]] = []
        tensors: dict[str, Tensor] = {}
        for number, flat in enumerate(self.engine.flats):
            if self.engine.zero_stage > 0 or number % self.world_size == self.rank:
                named = {f"{len(layout)}/{key}": value for key, value in self._of_flat(number, flat).items()}
                tensors |= named
                layout.append(flat.spans)
        for number, other in enumerate(self._others):
            if not other.replicated or number % self.world_size == self.rank:
                tensors[f"{len(layout)}/{WEIGHTS}"] = other.value
                layout.append(other.spans)
        return layout, tensors

    def _of_flat(self, number: int, flat: Flat) -> dict[str, Tensor]:
        values = {key: value for key, value in flat.state.items() if isinstance(value, Tensor)}
        state = {key: value.view(-1) if value.dim() else value for key, value in values.items()}
        kept = {EMA: self.ema, TEACHER: self.teacher}
        averages = {key: average.averages[number] for key, average in kept.items() if average}
        return {WEIGHTS: flat.weights, **state, **averages}

    @torch.no_grad()
    def load_collective(self, reader: StateReader) -> None:
        """Take everything from a checkpoint, however many ranks wrote it under whatever ZeRO stage."""
        for number, flat in enumerate(self.engine.flats):
            self._load_optimizer(flat, reader)
            tensors = {key: value for key, value in self._of_flat(number, flat).items() if value.dim()}
            for span in flat.spans:
                for key, value in tensors.items():
                    part = value[span.offset : span.offset + span.numel]
                    reader.read_into(part, span.parameter, span.start, key)
        for other in self._others:
            for span in other.spans:
                reader.read_into(other.value[: span.numel], span.parameter, span.start, WEIGHTS)
        self.engine.refresh_collective()
        if self.teacher:
            self.teacher.refresh_collective()

    def _load_optimizer(self, flat: Flat, reader: StateReader) -> None:
        """Make room for the state that torch's optimisers only make in their first step, and set its scalars."""
        for key in reader.keys - {WEIGHTS, EMA, TEACHER}:
            flat.state[key] = torch.zeros_like(flat.key, requires_grad=False)
        for key, value in reader.scalars.items():
            flat.state[key] = value.to(flat.weights.device, copy=True)
