"""Augmentation of one image for a training batch: crop, resize, flip, colours, erasing; all on uint8.

Every draw comes from the given generator, which the caller keys by (seed, slot): a sample is augmented identically
whichever process reads it.

A new step is a setting of `AugmentConfig`, off by default, and a line of `load_augmented`. It draws only if it is on,
so that other pipelines keep their random numbers. It returns uint8 [height, width, channels] for 1 and 3 channels;
OpenCV drops an axis of 1. If it moves pixels, it adds the motion to `trail`, so that labels follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from pipeline.config.data import AugmentConfig, Color
from pipeline.images.decode import Data, Header, Pixels, read_header
from pipeline.images.geometry import Box, Geometry, Size, Trail, flipped, placed
from pipeline.images.load import load_box, load_frame
from pipeline.stream.rand_augment import brightness, contrast, rand_augment, saturation
from pipeline.stream.three_augment import three_augment

FrameChoice = Callable[[Size, Size, np.random.Generator], Geometry]  # takes the sizes of the image and of the view

CROP_ATTEMPTS = 10
REFLECTED = 4  # pixels of reflection padding at each edge for a simple crop
ERASE_SCALE, ERASE_RATIO = (0.02, 1 / 3), (0.3, 10 / 3)  # Zhong et al. 2020


def load_augmented(
    data: Data,
    size: Size,
    channels: int,
    background: Color,
    config: AugmentConfig,
    rng: np.random.Generator,
    trail: Trail | None = None,
    frame: FrameChoice | None = None,
) -> Pixels:
    """The image, cropped, resized to `size` and augmented, uint8 [height, width, channels]; raises BadImage.

    Randomly erased areas stay labelled. `frame` determines the crop regardless of `config.crop`.
    """
    header = read_header(data)
    if frame is not None:
        seen = frame((header.height, header.width), size, rng)
        image = load_frame(data, header, seen, channels, background, trail)
    elif config.crop == "simple":
        image = simple_crop(data, header, size, channels, background, rng, trail)
    else:
        full = header.height, header.width
        box = random_box(full, config, rng) if config.crop == "random_resized" else Box(0, 0, *full)
        image = load_box(data, header, box, size, channels, background, exact=False, trail=trail)
    if frame is None and config.crop == "padded":
        image = shift(image, config.padding, rng, trail)
    if config.flip and rng.random() < 0.5:
        if trail is not None:
            trail.add(flipped(size))
        image = cv2.flip(image, 1).reshape(image.shape)
    if config.three_augment:
        image = three_augment(image, rng)
    if config.color_jitter:
        image = color_jitter(image, config.color_jitter, rng)
    if config.rand_augment is not None:
        image = rand_augment(image, config.rand_augment, rng, trail)
    if config.erase and rng.random() < config.erase:
        image = erase(image, rng)
    return image


def random_box(full: Size, config: AugmentConfig, rng: np.random.Generator) -> Box:
    """A box of random area and aspect ratio (Szegedy et al. 2015); the largest central one if no draw fits."""
    height, width = full
    low, high = math.log(config.ratio[0]), math.log(config.ratio[1])
    for _ in range(CROP_ATTEMPTS):
        area = height * width * between(*config.scale, rng)
        ratio = math.exp(between(low, high, rng))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(below(height - h + 1, rng), below(width - w + 1, rng), h, w)
    ratio = min(max(width / height, config.ratio[0]), config.ratio[1])
    h, w = min(height, max(round(width / ratio), 1)), min(width, max(round(height * ratio), 1))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def simple_crop(
    data: Data,
    header: Header,
    size: Size,
    channels: int,
    background: Color,
    rng: np.random.Generator,
    trail: Trail | None = None,
) -> Pixels:
    """Resize the shorter side to fit, pad 4 pixels by reflection at each edge, and crop at random (DeiT III).

    Only the crop is resized, so a very long image needs no more memory than others. For the geometry, the reflected
    pixels lie outside the image: targets are not reflected.
    """
    scale = max(size[0] / header.height, size[1] / header.width)
    spans, borders = [], []
    for full, side in ((header.height, size[0]), (header.width, size[1])):
        resized = max(round(full * scale), side)
        beyond = min(REFLECTED, side - 1)  # part of the image is always visible
        first = below(resized - side + 2 * beyond + 1, rng) - beyond
        start, stop = max(first, 0), min(first + side, resized)
        spans.append((int(start * full / resized), max(math.ceil(stop * full / resized), 1), stop - start))
        borders += [start - first, first + side - stop]
    (top, bottom, height), (left, right, width) = spans
    box = Box(top, left, bottom - top, right - left)
    shown = load_box(data, header, box, (height, width), channels, background, exact=False, trail=trail)
    above, below_it, before, behind = borders
    if trail is not None:
        trail.add(placed((height, width), above, before, size))
    framed = cv2.copyMakeBorder(shown, above, below_it, before, behind, cv2.BORDER_REFLECT)
    return framed.reshape(*size, channels)


def between(low: float, high: float, rng: np.random.Generator) -> float:
    """Uniform in [low, high), like `rng.uniform` but four times as fast."""
    return low + (high - low) * rng.random()


def below(limit: int, rng: np.random.Generator) -> int:
    """Uniform integer in 0 .. limit - 1."""
    return int(rng.random() * limit)


def shift(image: Pixels, padding: float, rng: np.random.Generator, trail: Trail | None = None) -> Pixels:
    """Pad the image with black by a fraction of its sides, and crop it to its original size at random."""
    height, width = image.shape[:2]
    pad_y, pad_x = round(padding * height), round(padding * width)
    dy, dx = below(2 * pad_y + 1, rng) - pad_y, below(2 * pad_x + 1, rng) - pad_x
    if trail is not None:
        trail.add(placed((height, width), -dy, -dx, (height, width)))
    out = np.zeros(image.shape, np.uint8)
    out[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)] = image[
        max(dy, 0) : height - max(-dy, 0), max(dx, 0) : width - max(-dx, 0)
    ]
    return out


def color_jitter(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast and saturation, in random order, each by a factor in 1 - strength .. 1 + strength."""
    for choice in rng.permutation(3).tolist():
        factor = between(max(1 - strength, 0.0), 1 + strength, rng)
        image = (brightness, contrast, saturation)[choice](image, factor)
    return image


def erase(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Fill a random rectangle with noise (random erasing, Zhong et al. 2020, in its per-pixel form)."""
    height, width, channels = image.shape
    for _ in range(CROP_ATTEMPTS):
        area = height * width * between(*ERASE_SCALE, rng)
        ratio = math.exp(between(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1]), rng))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = below(height - h + 1, rng), below(width - w + 1, rng)
            image = image.copy()
            image[top : top + h, left : left + w] = rng.integers(256, size=(h, w, channels), dtype=np.uint8)
            return image
    return image
