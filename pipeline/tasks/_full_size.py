"""From logits on a grid of patches to pixels of the image at its own size, in pieces that stay small.

Legend: K classes, (h, w) grid of logits, (H, W) the image's own size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.config.data import PlainConfig
from pipeline.images.plain import Span, spans
from pipeline.models.spec import Pair

MOST_VALUES = 1 << 24  # logits that are there at once at full size: 64 MiB


def full_size_logits(logits: Tensor, full: Pair, view: Pair, how: PlainConfig) -> Iterator[tuple[int, Tensor]]:
    """Logits [K, h, w] of an image that was brought to the size `view`, at its own size `full`, in bands of rows.

    Interpolated bilinearly where `how` says that each pixel came to lie. A pixel that a crop cut off has the logits of
    the nearest one that was seen. Yields the first row of each band, and fp32 [K, rows, W].
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
    """int64 [H, W]: the likeliest class of each pixel; arguments as of `full_size_logits`."""
    return torch.cat([likeliest(band) for _, band in full_size_logits(logits, full, view, how)])


def likeliest(logits: Tensor) -> Tensor:
    """int64 [rows, W] of logits [K, rows, W]; `max` takes a thirteenth of the time of `argmax` on a CPU."""
    return logits.max(dim=0).indices


def axis_weights(full: int, span: Span, side: int, cells: int) -> np.ndarray:
    """float32 [full, cells]: shares of the cells in each pixel of an axis; rows sum to 1.

    `span` says where the axis of `full` pixels lies in the view's `side`, which the cells cut into equal parts.
    """
    centres = np.arange(full) + 0.5
    seen = span.first + (centres - span.start) * span.length / (span.stop - span.start)
    seen = seen.clip(span.first, span.first + span.length)
    where = (seen * cells / side - 0.5).clip(0, cells - 1)
    weights: np.ndarray = (1 - np.abs(where[:, None] - np.arange(cells))).clip(0).astype(np.float32)
    return weights
