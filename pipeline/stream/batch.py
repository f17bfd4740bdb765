"""A rank's share of a global batch, and how its loader workers fill it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.stream.layout import VIEWS, Layout, Ragged
from pipeline.stream.sample import Sample
from pipeline.targets.base import Field, Target, empty

OFFSETS = ".offsets"


@dataclass
class Batch:
    """One rank's share of one global batch, ordered by slot; B may be 0 where a rank has no lane in a small batch.

    The views of a group that has several are [B, V, C, H, W]. A ragged target F is its values, one sample behind the
    other, and `F.offsets`, int64 [B + 1], on the CPU wherever the batch is: sample i has values[offsets[i] :
    offsets[i + 1]]. A sample of weight 0 counts nowhere, whatever its targets.
    """

    views: dict[str, Tensor]  # by group: uint8 [B, C, H, W]
    targets: dict[str, Tensor]  # by field: [B, ...]
    weights: Tensor  # float32 [B]; 0 for stand-ins of bad samples and for padding
    slots: Tensor  # int64 [B]; -1 for padding
    keys: list[str]  # "shard/key"
    step: int
    reasons: Sequence[str] = ()  # why samples are bad, one for each stand-in


class Part(NamedTuple):
    """What one loader worker says of the rows that it filled; views and targets are in the batch already."""

    rows: np.ndarray  # int64 [n], of the batch
    slots: np.ndarray  # int64 [n]
    weights: np.ndarray  # float32 [n]
    keys: list[str]
    reasons: list[str]  # one for each stand-in
    ragged: Ragged  # by field and row: what has no place in a buffer, as its size was not known


def fill(
    memory: np.ndarray,
    layout: Layout,
    targets: Sequence[Target],
    rows: np.ndarray,
    slots: np.ndarray,
    samples: Iterable[Sample],
) -> Part:
    """Put samples into rows of a batch's memory, uint8 [bytes]."""
    keys, weights, reasons, arrays = [], [], [], layout.arrays(memory)
    views = [planes for group in layout.groups for planes in views_of(arrays[VIEWS + group])]
    ragged: Ragged = {name: {} for name, field in layout.fields.items() if field.ragged}
    fields: dict[str, Any] = {name: arrays[name] for name in layout.fields if name not in ragged} | ragged
    for row, sample in zip(rows.tolist(), samples, strict=True):
        if sample.views is None:
            for planes in views:
                planes[row] = 0
        else:
            for planes, image in zip(views, sample.views, strict=True):
                put_image(planes[row], image)
        if sample.values is None:
            put_blank(fields, layout.fields, row)
        else:
            for target, value in zip(targets, sample.values, strict=True):
                target.pack(value, fields, row)
        keys.append(sample.key)
        weights.append(sample.weight)
        if sample.reason:
            reasons.append(sample.reason)
    return Part(rows, slots, np.array(weights, np.float32), keys, reasons, ragged)


def views_of(group: np.ndarray) -> list[np.ndarray]:
    """The views of a group, [B, C, H, W] each."""
    return [group] if group.ndim == 4 else [group[:, view] for view in range(group.shape[1])]


def put_image(planes: np.ndarray, image: np.ndarray) -> None:
    """Write an image [H, W, C] into its row [C, H, W] of a batch."""
    if len(planes) == 1:
        planes[0] = image[:, :, 0]
    else:
        cv2.split(image, list(planes))  # five times as fast as NumPy's transposing copy


def put_blank(arrays: Mapping[str, Any], fields: Mapping[str, Field], row: int) -> None:
    """What the targets of a sample without any hold; of a ragged one, nothing."""
    for name, field in fields.items():
        if not field.ragged:
            arrays[name][row] = field.fill


def assemble(memory: np.ndarray, layout: Layout, parts: Sequence[Part], step: int) -> Batch:
    """The batch whose memory these parts together have filled."""
    arrays = layout.arrays(memory)
    slots, weights, keys = np.empty(layout.size, np.int64), np.empty(layout.size, np.float32), [""] * layout.size
    for part in parts:
        slots[part.rows], weights[part.rows] = part.slots, part.weights
        for row, key in zip(part.rows.tolist(), part.keys, strict=True):
            keys[row] = key
    targets: dict[str, Tensor] = {}
    for name, field in layout.fields.items():
        if field.ragged:
            found = {row: values for part in parts for row, values in part.ragged[name].items()}
            targets[name], targets[name + OFFSETS] = joined(found, field, layout.size)
        else:
            targets[name] = torch.from_numpy(arrays[name])
    views = {group: torch.from_numpy(arrays[VIEWS + group]) for group in layout.groups}
    reasons = [reason for part in parts for reason in part.reasons]
    return Batch(views, targets, torch.from_numpy(weights), torch.from_numpy(slots), keys, step, reasons)


def joined(found: Mapping[int, np.ndarray], field: Field, size: int) -> tuple[Tensor, Tensor]:
    """Values and offsets of a ragged field."""
    rows = [found.get(row) for row in range(size)]
    values = [empty(field), *(np.asarray(row, field.dtype) for row in rows if row is not None)]
    offsets = np.cumsum([0, *(0 if row is None else len(row) for row in rows)])
    return torch.from_numpy(np.concatenate(values)), torch.from_numpy(offsets)
