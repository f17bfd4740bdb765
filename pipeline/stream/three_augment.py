"""3-Augment (Touvron, Cord and Jegou 2022, "DeiT III"): greyscale, solarise or blur, drawn uniformly."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.images.decode import Pixels
from pipeline.stream.rand_augment import grey, solarize

THRESHOLD = 128
RADIUS = 0.1, 2.0  # standard deviation of the blur, pixels


def three_augment(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Apply one of the three augmentations to an image, uint8 [height, width, channels]."""
    choice = int(rng.random() * 3)
    if choice == 0:
        return np.repeat(grey(image)[:, :, None], image.shape[2], axis=2)
    if choice == 1:
        return solarize(image, THRESHOLD)
    radius = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * rng.random()
    return cv2.GaussianBlur(image, (0, 0), radius).reshape(image.shape)
