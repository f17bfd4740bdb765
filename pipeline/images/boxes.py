"""Bounding boxes: moving them with the image, and drawing them.

A box is (left, top, right, bottom) in pixels, fractional or not; see `images.geometry` for the coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.images.class_map import class_colors
from pipeline.images.decode import Pixels
from pipeline.images.geometry import Geometry, Matrix, Size, compose, inverted, transform

LETTERS = cv2.FONT_HERSHEY_PLAIN
SMALL = 0.75  # font scale: letters 7 pixels high
LINE = 9  # height of a caption in pixels


def moved_boxes(boxes: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the source [n, 4] -> their visible parts in the output, float64 [n, 4], and the visible area shares.

    A box turned by a rotation or shear becomes the axis-aligned box around its visible part. A box with no visible
    part has a share of 0.
    """
    outlines = transform(geometry.matrix, _outlines(boxes)).reshape(-1, 4, 2)
    windows = [_window(geometry.size, None)]
    windows += [_window(frame.size, compose(inverted(frame.matrix), geometry.matrix)) for frame in geometry.frames]
    if all(_is_upright(matrix) for matrix in (geometry.matrix, *(frame.matrix for frame in geometry.frames))):
        low, high = outlines.min(axis=1), outlines.max(axis=1)
        first = np.max([window.min(axis=0) for window in windows], axis=0)
        last = np.min([window.max(axis=0) for window in windows], axis=0)
        seen = np.concatenate([low.clip(first, last), high.clip(first, last)], axis=1)
        return seen, _areas(seen) / _areas(np.concatenate([low, high], axis=1))
    found = [_seen(outline, windows) for outline in outlines]
    return np.array([box for box, _ in found]).reshape(-1, 4), np.array([share for _, share in found])


def draw_boxes(picture: Pixels, boxes: np.ndarray, labels: Sequence[int], captions: Sequence[str] = ()) -> None:
    """Draws boxes in the colours of their classes into an RGB picture, in place, each with its caption if given."""
    height, width = picture.shape[:2]
    # Colour 0 is reserved for the background.
    colors = class_colors(max(labels, default=-1) + 2)[1:].tolist()
    thickness = max(round(max(height, width) / 400), 1)
    for (left, top, right, bottom), label in zip(np.rint(boxes).astype(int).tolist(), labels, strict=True):
        corner = min(right, width) - 1, min(bottom, height) - 1
        cv2.rectangle(picture, (max(left, 0), max(top, 0)), corner, colors[label], thickness)
    for (left, top, _, _), label, caption in zip(np.rint(boxes).astype(int).tolist(), labels, captions, strict=False):
        (length, _), _ = cv2.getTextSize(caption, LETTERS, SMALL, 1)
        x, y = max(min(left, width - length - 2), 0), max(top, 0)
        cv2.rectangle(picture, (x, y), (x + length + 1, y + LINE + 1), colors[label], cv2.FILLED)
        ink = 0 if sum(colors[label]) > 380 else 255
        cv2.putText(picture, caption, (x + 1, y + LINE), LETTERS, SMALL, (ink, ink, ink), 1, cv2.LINE_AA)


def _outlines(boxes: np.ndarray) -> np.ndarray:
    """The four corners of each box in order, [n * 4, 2]."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)


def _window(size: Size, matrix: Matrix | None) -> np.ndarray:
    """The corners [4, 2] of an image of this size, mapped by the matrix if there is one."""
    corners = _outlines(np.array([[0, 0, size[1], size[0]]], np.float64))
    return corners if matrix is None else transform(matrix, corners)


def _is_upright(matrix: Matrix) -> bool:
    """Whether the matrix keeps axis-aligned boxes axis-aligned."""
    return bool((matrix[0, 1] == matrix[1, 0] == 0) or (matrix[0, 0] == matrix[1, 1] == 0))


def _areas(boxes: np.ndarray) -> np.ndarray:
    areas: np.ndarray = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return areas


def _seen(outline: np.ndarray, windows: Sequence[np.ndarray]) -> tuple[list[float], float]:
    """The axis-aligned box around the part of an outline [4, 2] inside all windows, and that part's area share."""
    rest: np.ndarray = outline.astype(np.float32)
    whole = cv2.contourArea(rest)
    for window in windows:
        _, found = cv2.intersectConvexConvex(rest, window.astype(np.float32))
        if found is None or len(found) < 3:
            return [0.0] * 4, 0.0
        rest = found.reshape(-1, 2)
    box = [*rest.min(axis=0).tolist(), *rest.max(axis=0).tolist()]
    return box, cv2.contourArea(rest) / max(whole, 1e-9)
