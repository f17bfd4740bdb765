"""A rank's share of a global batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.stream.layout import VIEWS, BatchLayout
from pipeline.stream.rows import WrittenRows
from pipeline.targets.base import Field, empty

OFFSETS = ".offsets"


@dataclass
class Batch:
    """One rank's share of one global batch, ordered by slot; B may be 0 if no lane of the rank is in a small batch.

    A group with several views is [B, V, C, H, W]. A ragged target F consists of its values, concatenated over samples,
    and `F.offsets`, int64 [B + 1], which stays on the CPU: sample i has values[offsets[i] : offsets[i + 1]]. A sample
    of weight 0 is ignored, whatever its targets.
    """

    views: dict[str, Tensor]  # by group: uint8 [B, C, H, W]
    targets: dict[str, Tensor]  # by field: [B, ...]
    weights: Tensor  # float32 [B]; 0 for stand-ins of bad samples and for padding
    slots: Tensor  # int64 [B]; -1 for padding
    keys: list[str]  # "shard/key"
    step: int
    reasons: Sequence[str] = ()  # why samples are bad, one per stand-in


def assemble(memory: np.ndarray, layout: BatchLayout, written: Sequence[WrittenRows], step: int) -> Batch:
    """Assemble the batch whose memory the loader workers have written."""
    arrays = layout.arrays(memory)
    slots, weights, keys = np.empty(layout.size, np.int64), np.empty(layout.size, np.float32), [""] * layout.size
    for part in written:
        slots[part.rows], weights[part.rows] = part.slots, part.weights
        for row, key in zip(part.rows.tolist(), part.keys, strict=True):
            keys[row] = key
    targets: dict[str, Tensor] = {}
    for name, field in layout.fields.items():
        if field.ragged:
            found = {row: values for part in written for row, values in part.ragged[name].items()}
            targets[name], targets[name + OFFSETS] = joined(found, field, layout.size)
        else:
            targets[name] = torch.from_numpy(arrays[name])
    views = {group: torch.from_numpy(arrays[VIEWS + group]) for group in layout.groups}
    reasons = [reason for part in written for reason in part.reasons]
    return Batch(views, targets, torch.from_numpy(weights), torch.from_numpy(slots), keys, step, reasons)


def joined(found: Mapping[int, np.ndarray], field: Field, size: int) -> tuple[Tensor, Tensor]:
    """Values and offsets of a ragged field."""
    rows = [found.get(row) for row in range(size)]
    values = [empty(field), *(np.asarray(row, field.dtype) for row in rows if row is not None)]
    offsets = np.cumsum([0, *(0 if row is None else len(row) for row in rows)])
    return torch.from_numpy(np.concatenate(values)), torch.from_numpy(offsets)
