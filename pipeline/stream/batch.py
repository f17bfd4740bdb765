"""A rank's share of a global batch, and how it is put together from its loader workers' parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.stream.augment import Size
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


class Part(NamedTuple):
    """What one loader worker adds to a batch. Only the images travel as a tensor, in shared memory."""

    images: Tensor  # uint8 [n, C, H, W]
    labels: np.ndarray  # int64 [n, 2]: label, label_mix
    factors: np.ndarray  # float32 [n, 2]: mix, weight
    slots: np.ndarray  # int64 [n], ascending
    keys: list[str]
    step: int


def make_part(slots: Sequence[int], sample_at: Callable[[int], Sample], channels: int, size: Size, step: int) -> Part:
    """Make the sample of each slot and lay them side by side."""
    images = np.empty((len(slots), channels, *size), dtype=np.uint8)
    labels = np.empty((len(slots), 2), dtype=np.int64)
    factors = np.empty((len(slots), 2), dtype=np.float32)
    keys = []
    for row, slot in enumerate(slots):
        sample = sample_at(slot)
        put_image(images[row], sample.image)
        labels[row] = sample.label, sample.label_mix
        factors[row] = sample.mix, sample.weight
        keys.append(sample.key)
    return Part(torch.from_numpy(images), labels, factors, np.asarray(slots, dtype=np.int64), keys, step)


def put_image(planes: np.ndarray, image: np.ndarray | None) -> None:
    """Write an image [H, W, C] into its row [C, H, W] of a batch."""
    if image is None:
        planes.fill(0)
    elif len(planes) == 1:
        planes[0] = image[:, :, 0]
    else:
        cv2.split(image, list(planes))  # five times as fast as NumPy's transposing copy


def merge(parts: Iterable[Part], *, pin_memory: bool = False) -> Batch:
    """The batch of the parts of one step, in slot order; images in page-locked memory if asked."""
    parts = list(parts)
    slots = np.concatenate([part.slots for part in parts])
    order = np.argsort(slots) if len(parts) > 1 else np.arange(len(slots))
    if len(parts) == 1 and not pin_memory:
        images = parts[0].images
    else:
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))
        images = torch.empty((len(slots), *parts[0].images.shape[1:]), dtype=torch.uint8, pin_memory=pin_memory)
        target, start = images.numpy(), 0
        for part in parts:
            target[rows[start : start + len(part.slots)]] = part.images.numpy()
            start += len(part.slots)
    labels = torch.from_numpy(np.concatenate([part.labels for part in parts])[order])
    factors = torch.from_numpy(np.concatenate([part.factors for part in parts])[order])
    keys = [key for part in parts for key in part.keys]
    return Batch(
        images=images,
        labels=labels[:, 0].contiguous(),
        labels_mix=labels[:, 1].contiguous(),
        mix=factors[:, 0].contiguous(),
        weights=factors[:, 1].contiguous(),
        slots=torch.from_numpy(slots[order]),
        keys=[keys[row] for row in order.tolist()],
        step=parts[0].step,
    )
