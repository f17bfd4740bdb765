"""Drawing keypoints into pictures."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.images.class_map import class_colors
from pipeline.images.decode import Pixels
from pipeline.metrics.keypoints import VISIBLE

PARTS = 16  # subpixel steps in which OpenCV draws
SHARE = 60  # the radius of a point is this fraction of the picture's longer side


def draw_keypoints(picture: Pixels, points: np.ndarray, flags: np.ndarray) -> None:
    """Draws points [K, 2] into an RGB picture, in place: discs where v in `flags` [K] is 2, rings where it is 1."""
    radius = max(round(max(picture.shape[:2]) / SHARE), 2)
    for (x, y), flag, color in zip(points.tolist(), flags.tolist(), keypoint_colors(len(points)), strict=True):
        if flag and max(abs(x), abs(y)) < 1 << 20:
            place = round((x - 0.5) * PARTS), round((y - 0.5) * PARTS)
            thickness = cv2.FILLED if flag == VISIBLE else 1
            cv2.circle(picture, place, radius * PARTS, color, thickness, cv2.LINE_AA, shift=4)


def keypoint_colors(count: int) -> list[tuple[int, int, int]]:
    """RGB colours of `count` keypoints."""
    # Colour 0 is reserved for the background.
    return [tuple(color) for color in class_colors(count + 1)[1:].tolist()]
