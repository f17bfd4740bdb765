"""Cutting a rank's share of a global batch into micro-batches, and moving it to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from pipeline.stream.batch import Batch

TENSORS = ("images", "labels", "labels_mix", "mix", "weights", "slots")


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Cut a rank's share into micro-batches that differ by one sample at most; none is empty.

    A rank with fewer samples than parts repeats its first one (a blank, if it has none) at weight 0: every rank runs as
    many backward passes.
    """
    size = len(batch.labels)
    if size == 0:
        batch = map_tensors(batch, lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]))
    bounds = [size * part // parts for part in range(parts + 1)]
    for start, stop in pairwise(bounds):
        if stop > start:
            yield map_tensors(batch, itemgetter(slice(start, stop)))
        else:
            first = map_tensors(batch, itemgetter(slice(0, 1)))
            yield replace(first, weights=torch.zeros_like(first.weights))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device, copied while the host waits; `feed.on_device` copies in the background."""
    return map_tensors(batch, lambda tensor: tensor.to(device))


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return with_tensors(batch, {name: change(tensor) for name, tensor in tensors_of(batch).items()})


def with_tensors(batch: Batch, tensors: dict[str, Any]) -> Batch:
    """The batch with other tensors, by name."""
    return replace(batch, **tensors)


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """A batch's tensors by name."""
    return {name: getattr(batch, name) for name in TENSORS}
