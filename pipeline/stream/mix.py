"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of two uint8 images, drawn per sample."""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline.config.data import AugmentConfig
from pipeline.images.decode import Pixels
from pipeline.images.geometry import Box
from pipeline.targets.base import Mixing


def mix_pair(image: Pixels, other: Pixels, config: AugmentConfig, rng: np.random.Generator) -> tuple[Pixels, Mixing]:
    """The mixed image and how it was mixed: the share of `image` in it is also the share of its label.

    If both methods are configured, each is used for half of the samples, as in DeiT.
    """
    use_cutmix = config.cutmix > 0 and (config.mixup == 0 or rng.random() < 0.5)
    alpha = config.cutmix if use_cutmix else config.mixup
    share = float(rng.beta(alpha, alpha))
    if not use_cutmix:
        return cv2.addWeighted(image, share, other, 1 - share, 0).reshape(image.shape), Mixing(share)
    height, width = image.shape[:2]
    half_h, half_w = height * math.sqrt(1 - share) / 2, width * math.sqrt(1 - share) / 2
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    top, bottom = max(round(y - half_h), 0), min(round(y + half_h), height)
    left, right = max(round(x - half_w), 0), min(round(x + half_w), width)
    out = image.copy()
    out[top:bottom, left:right] = other[top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)  # accounts for clipping at the border
    return out, Mixing(share, Box(top, left, bottom - top, right - left))
