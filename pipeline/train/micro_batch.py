"""Splitting a rank's share of a global batch into micro-batches, and moving it to a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.stream.batch import OFFSETS, Batch

VIEWS, TARGETS = "views/", "targets/"


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Split a rank's share into non-empty micro-batches whose sizes differ by at most one sample.

    A rank with fewer samples than parts repeats its first sample (a blank if it has none) with weight 0, so that every
    rank runs the same number of backward passes.
    """
    size = len(batch.weights)
    if size == 0:
        batch = blank(batch)
    bounds = [size * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(bounds):
        if stop > start:
            yield cut(batch, start, stop)
        else:
            first = cut(batch, 0, 1)
            yield replace(first, weights=torch.zeros_like(first.weights))


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Samples `start` to `stop` as a batch, without waiting for the device."""
    tensors = {}
    for name, tensor in tensors_of(batch).items():
        if name.endswith(OFFSETS):
            tensors[name] = tensor[start : stop + 1] - tensor[start]
        elif (offsets := batch.targets.get(name.removeprefix(TARGETS) + OFFSETS)) is not None:
            tensors[name] = tensor[int(offsets[start]) : int(offsets[stop])]
        else:
            tensors[name] = tensor[start:stop]
    return replace(with_tensors(batch, tensors), keys=batch.keys[start:stop])


def blank(batch: Batch) -> Batch:
    """One sample of zeros with the shapes and dtypes of an empty batch."""
    tensors = {}
    for name, tensor in tensors_of(batch).items():
        if name.endswith(OFFSETS):
            tensors[name] = tensor.new_zeros(2)
        elif name.removeprefix(TARGETS) + OFFSETS in batch.targets:
            tensors[name] = tensor
        else:
            tensors[name] = tensor.new_zeros(1, *tensor.shape[1:])
    return replace(with_tensors(batch, tensors), keys=[""])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device, copied synchronously; `feed.on_device` copies in the background."""
    return with_tensors(batch, {name: tensor.to(device) for name, tensor in tensors_to_move(batch).items()})


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """A batch's tensors by name."""
    views = {VIEWS + name: tensor for name, tensor in batch.views.items()}
    targets = {TARGETS + name: tensor for name, tensor in batch.targets.items()}
    return {**views, **targets, "weights": batch.weights, "slots": batch.slots}


def tensors_to_move(batch: Batch) -> dict[str, Tensor]:
    """The tensors that belong on the compute device: all except offsets."""
    return {name: tensor for name, tensor in tensors_of(batch).items() if not name.endswith(OFFSETS)}


def with_tensors(batch: Batch, tensors: dict[str, Tensor]) -> Batch:
    """The batch with some tensors replaced, by their names in `tensors_of`."""
    views = {name: tensors.get(VIEWS + name, tensor) for name, tensor in batch.views.items()}
    targets = {name: tensors.get(TARGETS + name, tensor) for name, tensor in batch.targets.items()}
    weights, slots = tensors.get("weights", batch.weights), tensors.get("slots", batch.slots)
    return replace(batch, views=views, targets=targets, weights=weights, slots=slots)
