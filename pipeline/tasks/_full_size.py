"""Interpolation of logits on a patch grid to the pixels of the image at its own size, in small pieces.

Legend: K classes, (h, w) grid of logits, (H, W) the image's own size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.config.data import PlainConfig
from pipeline.images.plain import AxisSpan, spans
from pipeline.models.spec import Pair

MOST_VALUES = 1 << 24  # full-size logits held at once: 64 MiB


def full_size_logits(logits: Tensor, full: Pair, view: Pair, how: PlainConfig) -> Iterator[tuple[int, Tensor]]:
    """Logits [K, h, w] of an image that was resized to `view`, at its own size `full`, in bands of rows.

    They are interpolated bilinearly at the position of each pixel in the view, which `how` determines. A pixel that was
    cropped away gets the logits of the nearest visible one. Yields the first row of each band, and fp32 [K, rows, W].
    """
    down, across = (
        torch.from_numpy(axis_weights(*axis)).to(logits.device)
        for axis in zip(full, spans(full, view, how), view, logits.shape[1:], strict=True)
    )
    columns = logits.float() @ across.T  # [K, h, W]
    rows = max(MOST_VALUES // (logits.shape[0] * full[1]), 1)
    for first in range(0, full[0], rows):
        yield first, down[first : first + rows] @ columns


def class_map(logits: Tensor, full: Pair, view: Pair, how: PlainConfig) -> Tensor:
    """int64 [H, W]: the most likely class of each pixel; arguments as for `full_size_logits`."""
    return torch.cat([likeliest(band) for _, band in full_size_logits(logits, full, view, how)])


def likeliest(logits: Tensor) -> Tensor:
    """Most likely classes, int64 [rows, W], of logits [K, rows, W]; on a CPU `max` is 13 times as fast as `argmax`."""
    return logits.max(dim=0).indices


def axis_weights(full: int, span: AxisSpan, side: int, cells: int) -> np.ndarray:
    """float32 [full, cells]: weights of the cells for each pixel along an axis; rows sum to 1.

    `span` maps the axis of `full` pixels to the `side` of the view, which the cells divide into equal parts.
    """
    centres = np.arange(full) + 0.5
    seen = span.first + (centres - span.start) * span.length / (span.stop - span.start)
    seen = seen.clip(span.first, span.first + span.length)
    where = (seen * cells / side - 0.5).clip(0, cells - 1)
    weights: np.ndarray = (1 - np.abs(where[:, None] - np.arange(cells))).clip(0).astype(np.float32)
    return weights
