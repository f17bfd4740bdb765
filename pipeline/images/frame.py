"""A frame of an image: a rectangle around a box, rotated or not, treated as an image of its own."""

from __future__ import annotations

import math

import numpy as np

from pipeline.images.geometry import Box, Geometry, Matrix, Size, as_matrix, inverted, transform

LEAST = 1.0  # pixels: smallest side of a frame
PADDING = 1.25  # of a box, as in ViTPose (Xu et al. 2022)


def frame_matrix(box: np.ndarray, size: Size, padding: float = PADDING, angle: float = 0.0) -> Matrix:
    """The map from an image to a view of `size`, centred on a box (left, top, right, bottom).

    The box, widened to the view's aspect ratio, fills 1 / `padding` of each side and is rotated by `angle` degrees.
    """
    left, top, right, bottom = box.tolist()
    height, width = size
    side = max(right - left, (bottom - top) * width / height, LEAST) * padding  # image pixels across the view
    scale, turn = width / side, math.radians(angle)
    a, b = scale * math.cos(turn), scale * math.sin(turn)
    x, y = (left + right) / 2, (top + bottom) / 2
    return as_matrix([[a, -b, width / 2 - a * x + b * y], [b, a, height / 2 - b * x - a * y]])


def seen_box(frame: Geometry) -> Box | None:
    """The box of whole source pixels that a frame shows; None if it shows none."""
    height, width = frame.size
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    seen = transform(inverted(frame.matrix), corners)
    (left, top), (right, bottom) = np.floor(seen.min(axis=0)), np.ceil(seen.max(axis=0))
    left, top = max(int(left), 0), max(int(top), 0)
    right, bottom = min(int(right), frame.source[1]), min(int(bottom), frame.source[0])
    return Box(top, left, bottom - top, right - left) if right > left and bottom > top else None
