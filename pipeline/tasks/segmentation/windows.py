"""Sliding-window inference on images larger than those that a model was trained on.

Legend: B batch, C channels, (H, W) image, K classes, (h, w) grid of the logits: patches or equal parts of patches.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from torch import Tensor

from pipeline.models.spec import Pair


def windowed_logits(
    model: Callable[[Tensor], Tensor], images: Tensor, window: Pair, stride: Pair, patch: Pair
) -> Tensor:
    """[B, C, H, W] -> logits [B, K, h, w] from windows `stride` pixels apart, averaged where these overlap.

    Windows are aligned to patches, so averages combine logits of the same patch and need no more memory than its
    logits. An image no larger than a window is processed whole.
    """
    size = (images.shape[2], images.shape[3])
    window = min(window[0], size[0]), min(window[1], size[1])
    if window == size:
        return model(images)
    total, count = None, None
    for top, left in product(*map(starts, size, window, stride, patch)):
        logits = model(images[:, :, top : top + window[0], left : left + window[1]]).float()
        cells = [found * length // side for found, length, side in zip(logits.shape[2:], patch, window, strict=True)]
        if total is None or count is None:
            grid = size[0] // patch[0] * cells[0], size[1] // patch[1] * cells[1]
            total, count = logits.new_zeros(*logits.shape[:2], *grid), logits.new_zeros(grid)
        row, column = top // patch[0] * cells[0], left // patch[1] * cells[1]
        place = slice(row, row + logits.shape[2]), slice(column, column + logits.shape[3])
        total[:, :, *place] += logits
        count[place] += 1
    assert total is not None
    assert count is not None
    return total / count


def starts(size: int, window: int, stride: int, patch: int) -> list[int]:
    """Window starts along an axis: `stride` apart, aligned to patches, with the last window at the end of the axis."""
    last = size - window
    return [*range(0, last, max(stride // patch * patch, patch)), last]
