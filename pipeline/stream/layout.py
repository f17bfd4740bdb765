"""The layout of a batch's tensors in one block of memory that a rank shares with its loader workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pipeline.targets.base import Field

ALIGNMENT = 64  # bytes: a cache line
VIEWS = "views."  # prefix of a group's name among the names of arrays

Ragged = dict[str, dict[int, np.ndarray]]  # by field and row


class Region(NamedTuple):
    """An array in the memory, from byte `start` to `stop`."""

    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BatchLayout:
    """The arrays of a batch of `size` samples: the views of each group, and each target field that is not ragged."""

    size: int
    groups: Mapping[str, tuple[int, ...]]  # shape of a sample's views: [C, H, W], or [V, C, H, W]
    fields: Mapping[str, Field]

    @cached_property
    def regions(self) -> dict[str, Region]:
        found, end = {}, 0
        arrays = {VIEWS + group: ("uint8", shape) for group, shape in self.groups.items()}
        for name, field in self.fields.items():
            if not field.ragged:
                arrays[name] = (field.dtype, tuple(side for side in field.shape if side is not None))
        for name, (dtype, shape) in arrays.items():
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + self.size * math.prod(shape) * np.dtype(dtype).itemsize
            found[name] = Region(start, end, dtype, (self.size, *shape))
        return found

    @property
    def bytes(self) -> int:
        """Total size of all arrays."""
        return max(region.stop for region in self.regions.values())

    def arrays(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays as views of a memory block, uint8 [bytes]."""
        return {
            name: memory[region.start : region.stop].view(region.dtype).reshape(region.shape)
            for name, region in self.regions.items()
        }
