"""The labelled objects of a batch, and the box formats for losses and measures.

Legend: B samples, n objects of all samples. Boxes are corners (left, top, right, bottom) or middles (x, y, width,
height), relative to the view's sides unless stated to be in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config.data import PlainConfig
from pipeline.images.plain import geometry
from pipeline.models.spec import Pair

LEAST = 1e-4  # relative to a side; smaller boxes are ignored
EPSILON = 1e-9


class Objects(NamedTuple):
    """All objects to detect in a batch."""

    corners: Tensor  # fp32 [n, 4]
    labels: Tensor  # int64 [n]
    owners: Tensor  # int64 [n], ascending: the sample of each object
    counts: list[int]  # objects of each sample

    @property
    def starts(self) -> list[int]:
        """Index of the first object of each sample."""
        return [0, *torch.tensor(self.counts).cumsum(0).tolist()][:-1]


def training_objects(targets: Mapping[str, Tensor], view: Pair) -> Objects:
    """Objects from the training fields of a batch whose views have size `view` in pixels."""
    boxes, offsets = targets["boxes"], targets["boxes.offsets"]
    return _objects(boxes / boxes.new_tensor([view[1], view[0]] * 2), targets["box_label"], offsets.diff().tolist())


def evaluation_objects(targets: Mapping[str, Tensor], view: Pair, how: PlainConfig) -> Objects:
    """Objects from the evaluation fields, mapped to views made with `how`; without crowds and cropped-off objects."""
    boxes, counts = targets["boxes_full"], targets["boxes_full.offsets"].diff().tolist()
    parts = [
        placed(some, (height, width), view, how)
        for some, (height, width) in zip(boxes.split(counts), targets["boxes_full_size"].tolist(), strict=True)
        if len(some)
    ]
    corners = (torch.cat(parts) if parts else boxes).float().clamp(0, 1)
    kept = ((corners[:, 2:] - corners[:, :2]) > LEAST).all(dim=1) & ~targets["box_crowd"]
    left = [int(some.sum()) for some in kept.split(counts)]
    return _objects(corners[kept], targets["box_label"][kept], left)


def placed(boxes: Tensor, full: Pair, view: Pair, how: PlainConfig) -> Tensor:
    """Corners [n, 4] in pixels of an image of size `full` -> relative to the view."""
    moved = _mapped(boxes, geometry(full, view, how).matrix)
    return moved / moved.new_tensor([view[1], view[0]] * 2)


def at_full_size(corners: Tensor, full: Pair, view: Pair, how: PlainConfig) -> Tensor:
    """Corners fp32 [n, 4] relative to a view -> in pixels of the image that it shows, clipped to the image."""
    pixels = corners * corners.new_tensor([view[1], view[0]] * 2)
    moved = _mapped(pixels, geometry(full, view, how).inverse().matrix)
    return moved.clamp(min=0).minimum(moved.new_tensor([full[1], full[0]] * 2))


def to_corners(middles: Tensor) -> Tensor:
    """Middles [..., 4] -> corners."""
    half = middles[..., 2:] / 2
    return torch.cat([middles[..., :2] - half, middles[..., :2] + half], dim=-1)


def to_middles(corners: Tensor) -> Tensor:
    """Corners [..., 4] -> middles."""
    first, last = corners.split(2, dim=-1)
    return torch.cat([(first + last) / 2, last - first], dim=-1)


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU (Rezatofighi et al. 2019) of broadcastable corners, [..., 4] each."""
    (first, last), (its_first, its_last) = one.split(2, dim=-1), other.split(2, dim=-1)
    both = (last.minimum(its_last) - first.maximum(its_first)).clamp(min=0).prod(dim=-1)
    union = (last - first).prod(dim=-1) + (its_last - its_first).prod(dim=-1) - both
    around = (last.maximum(its_last) - first.minimum(its_first)).prod(dim=-1)
    iou = both / union.clamp(min=EPSILON)
    return iou, iou - (around - union) / around.clamp(min=EPSILON)


def _objects(corners: Tensor, labels: Tensor, counts: Sequence[int]) -> Objects:
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    return Objects(corners, labels, owners.to(corners.device), list(counts))


def _mapped(boxes: Tensor, matrix: object) -> Tensor:
    """Transform corners [n, 4] by an axis-aligned affine matrix [2, 3]."""
    rows = torch.as_tensor(matrix, dtype=boxes.dtype, device=boxes.device)
    scale, shift = torch.stack([rows[0, 0], rows[1, 1]]), rows[:, 2]
    return boxes * scale.repeat(2) + shift.repeat(2)
