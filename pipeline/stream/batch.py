"""A rank's share of a global batch, and how its loader workers fill it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.stream.sample import Sample


@dataclass
class Batch:
    """One rank's share of one global batch, ordered by slot; B may be 0 where a rank has no lane in a small batch.

    The target is mix * onehot(labels) + (1 - mix) * onehot(labels_mix); mix is 1 without mixup and cutmix.
    """

    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor  # int64 [B]
    labels_mix: Tensor  # int64 [B]
    mix: Tensor  # float32 [B]
    weights: Tensor  # float32 [B]; 0 for stand-ins of bad samples and for padding
    slots: Tensor  # int64 [B]; -1 for padding
    keys: list[str]  # "shard/key"
    step: int
    reasons: Sequence[str] = ()  # why samples are bad, one for each stand-in

    @property
    def views(self) -> dict[str, Tensor]:
        return {"image": self.images}

    @property
    def targets(self) -> dict[str, Tensor]:
        return {"label": self.labels, "label_mix": self.labels_mix, "label_share": self.mix}


class Part(NamedTuple):
    """What one loader worker says of the rows that it filled; their images are in the batch already."""

    rows: np.ndarray  # int64 [n], of the batch
    slots: np.ndarray  # int64 [n]
    labels: np.ndarray  # int64 [n, 2]: label, label_mix
    factors: np.ndarray  # float32 [n, 2]: mix, weight
    keys: list[str]
    reasons: list[str]  # one for each stand-in


def fill(images: np.ndarray, rows: np.ndarray, slots: np.ndarray, samples: Iterable[Sample]) -> Part:
    """Put samples into rows of a batch's images, uint8 [B, C, H, W]."""
    keys, labels, factors, reasons = [], [], [], []
    for row, sample in zip(rows.tolist(), samples, strict=True):
        put_image(images[row], sample.image)
        keys.append(sample.key)
        labels.append((sample.label, sample.label_mix))
        factors.append((sample.mix, sample.weight))
        if sample.reason:
            reasons.append(sample.reason)
    both, pair = np.array(labels, np.int64).reshape(-1, 2), np.array(factors, np.float32).reshape(-1, 2)
    return Part(rows, slots, both, pair, keys, reasons)


def put_image(planes: np.ndarray, image: np.ndarray | None) -> None:
    """Write an image [H, W, C] into its row [C, H, W] of a batch."""
    if image is None:
        planes.fill(0)
    elif len(planes) == 1:
        planes[0] = image[:, :, 0]
    else:
        cv2.split(image, list(planes))  # five times as fast as NumPy's transposing copy


def assemble(images: Tensor, parts: Sequence[Part], step: int) -> Batch:
    """The batch whose images, uint8 [B, C, H, W], these parts together have filled."""
    size = len(images)
    slots, labels = np.empty(size, np.int64), np.empty((2, size), np.int64)
    factors, keys = np.empty((2, size), np.float32), [""] * size
    for part in parts:
        slots[part.rows], labels[:, part.rows], factors[:, part.rows] = part.slots, part.labels.T, part.factors.T
        for row, key in zip(part.rows.tolist(), part.keys, strict=True):
            keys[row] = key
    label, label_mix = torch.from_numpy(labels)
    factor, weight = torch.from_numpy(factors)
    reasons = [reason for part in parts for reason in part.reasons]
    return Batch(images, label, label_mix, factor, weight, torch.from_numpy(slots), keys, step, reasons)
