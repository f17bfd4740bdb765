"""Encodes a generated image without loss."""

from __future__ import annotations

import numpy as np


def as_png(image: np.ndarray) -> bytes:
    """A uint8 image, [H, W] or [H, W, 1], or [H, W, 3] in BGR, as PNG."""
    import cv2

    return bytes(cv2.imencode(".png", image)[1].tobytes())
