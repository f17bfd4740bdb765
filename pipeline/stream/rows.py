"""The rows of a batch as loader workers write them. Does not import torch, which they may not need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.stream.layout import VIEWS, BatchLayout, Ragged
from pipeline.stream.sample import Sample
from pipeline.targets.base import Field, Target


class WrittenRows(NamedTuple):
    """A loader worker's report on the rows that it wrote; views and targets are already in the batch."""

    rows: np.ndarray  # int64 [n], rows of the batch
    slots: np.ndarray  # int64 [n]
    weights: np.ndarray  # float32 [n]
    keys: list[str]
    reasons: list[str]  # one per stand-in
    ragged: Ragged  # by field and row: values of unknown size, which have no space in the buffer


def write_rows(
    memory: np.ndarray,
    layout: BatchLayout,
    targets: Sequence[Target],
    rows: np.ndarray,
    slots: np.ndarray,
    samples: Iterable[Sample],
) -> WrittenRows:
    """Write samples into rows of a batch's memory, uint8 [bytes]."""
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
    return WrittenRows(rows, slots, np.array(weights, np.float32), keys, reasons, ragged)


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
    """Write the fill values of a sample without targets; ragged fields stay empty."""
    for name, field in fields.items():
        if not field.ragged:
            arrays[name][row] = field.fill
