"""The flat fp32 tensors that a rank owns under ZeRO, and where slices of which parameters lie in them.

This unifies the three layouts of DeepSpeed 0.19: stage 0 keeps every parameter whole on every rank; stages 1 and 2
split the concatenation of a parameter group into equal parts; stage 3 splits each parameter and concatenates a rank's
slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.checkpoints.shard_file import Span


@dataclass(frozen=True)
class Flat:
    """A flat tensor of fp32 master weights, its optimiser state, and its layout. No span includes padding."""

    weights: Tensor  # fp32 [n]
    states: Any  # torch's optimizer.state, keyed by the tensor it updates
    key: Tensor
    spans: list[Span]

    @property
    def state(self) -> dict[str, Any]:
        """The optimiser's state of this flat; empty before the first step."""
        found: dict[str, Any] = self.states[self.key]
        return found


def replicated_flats(module: nn.Module, optimizer: Any) -> list[Flat]:
    """Stage 0: each parameter is a flat, replicated on every rank."""
    names = names_of(module)
    return [
        Flat(parameter.data.view(-1), optimizer.state, parameter, [Span(names[id(parameter)], 0, 0, parameter.numel())])
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def grouped_flats(module: nn.Module, zero: Any) -> list[Flat]:
    """Stages 1 and 2: a part of each parameter group."""
    names = names_of(module)
    if hasattr(zero, "bf16_groups"):  # BF16_Optimizer: stage 1 in bf16
        groups, parts = zero.bf16_groups, zero.fp32_groups_flat_partition
    else:
        groups, parts = zero.bit16_groups, zero.single_partition_of_fp32_groups
    return [
        Flat(flat.data, zero.optimizer.state, flat, _mapped_spans(parameters, names))
        for parameters, flat in zip(groups, parts, strict=True)
    ]


def _mapped_spans(parameters: list[Any], names: Mapping[int, str]) -> list[Span]:
    spans = []
    for parameter in parameters:
        if (mapping := parameter._hp_mapping) is not None:  # None: it lies entirely in the parts of other ranks
            own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
            spans.append(Span(names[id(parameter)], own.start, flat.start, flat.numel))
    return spans


def sliced_flats(module: nn.Module, zero: Any, rank: int) -> list[Flat]:
    """Stage 3: a slice of each parameter of each sub-group."""
    names = names_of(module)
    flats = []
    for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        spans, offset = [], 0
        for parameter in parameters:
            spans += slice_span(names[id(parameter)], parameter, rank, offset)
            offset += parameter.partition_numel()
        flats.append(Flat(flat.data, zero.optimizer.state, flat, spans))
    return flats


def slice_span(name: str, parameter: Any, rank: int, offset: int) -> list[Span]:
    """A rank's slice of a parameter under stage 3; empty if the slice is all padding."""
    size = parameter.partition_numel()
    numel = min(size, parameter.ds_numel - rank * size)
    return [Span(name, rank * size, offset, numel)] if numel > 0 else []


def gather_collective(flat: Tensor) -> Tensor:
    """Flats [n] of all ranks, of equal size, as [ranks, n] on every rank."""
    raw = flat.view(torch.uint8)  # backends can gather bytes for any dtype
    gathered = raw.new_empty(dist.get_world_size() * len(raw))
    dist.all_gather(list(gathered.chunk(dist.get_world_size())), raw)
    return gathered.view(flat.dtype).view(dist.get_world_size(), -1)


def names_of(module: nn.Module) -> dict[int, str]:
    """Parameter id -> name; a parameter shared by several modules gets the first of its names."""
    return {id(parameter): name for name, parameter in module.named_parameters()}


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Full, unpartitioned shape of every parameter and buffer."""
    shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in module.named_parameters()}
    return shapes | {name: list(buffer.shape) for name, buffer in module.named_buffers()}
