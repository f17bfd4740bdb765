"""What happens to one image on its way into a training batch: crop, resize, flip, colours, erasing; all on uint8.

Every draw comes from the generator handed in, which the caller keys by (seed, slot): a sample is treated alike whoever
reads it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.config.schema import AugmentConfig
from pipeline.stream.decode import Header, decode, read_header
from pipeline.stream.rand_augment import brightness, contrast, rand_augment, saturation

Pixels = np.ndarray  # uint8 [height, width, channels]
Size = tuple[int, int]  # height, width

CROP_ATTEMPTS = 10
ERASE_SCALE, ERASE_RATIO = (0.02, 1 / 3), (0.3, 10 / 3)  # Zhong et al. 2020
SHRINKS = (8, 4, 2)


class Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int


def load_plain(data: bytes | memoryview, size: Size, channels: int) -> Pixels:
    """The whole image at `size`, uint8 [height, width, channels]; raises BadSample."""
    header = read_header(data)
    return load_box(data, header, Box(0, 0, header.height, header.width), size, channels)


def load_augmented(
    data: bytes | memoryview, size: Size, channels: int, config: AugmentConfig, rng: np.random.Generator
) -> Pixels:
    """The image, cropped, resized to `size` and augmented, uint8 [height, width, channels]; raises BadSample."""
    if config.crop == "random_resized":
        header = read_header(data)
        box = random_box((header.height, header.width), config, rng)
        image = load_box(data, header, box, size, channels)
    else:
        image = load_plain(data, size, channels)
        if config.crop == "padded":
            image = shift(image, config.padding, rng)
    if config.flip and rng.random() < 0.5:
        image = cv2.flip(image, 1).reshape(image.shape)
    if config.color_jitter:
        image = color_jitter(image, config.color_jitter, rng)
    if config.rand_augment is not None:
        image = rand_augment(image, config.rand_augment, rng)
    if config.erase and rng.random() < config.erase:
        image = erase(image, rng)
    return image


def load_box(data: bytes | memoryview, header: Header, box: Box, size: Size, channels: int) -> Pixels:
    """A box of the image, resized to `size`; JPEG is decoded no larger than the box needs."""
    shrink = next((s for s in SHRINKS if box.height >= s * size[0] and box.width >= s * size[1]), 1)
    image = decode(data, header, channels, shrink)
    # Only JPEG is shrunk, and rare EXIF data behind the pixels turn an image against its header: trust the pixels.
    down, across = image.shape[0] / header.height, image.shape[1] / header.width
    top, left = int(box.top * down), int(box.left * across)
    bottom, right = math.ceil((box.top + box.height) * down), math.ceil((box.left + box.width) * across)
    return resize(image[top:bottom, left:right], size)


def resize(image: Pixels, size: Size) -> Pixels:
    """Area average where pixels become fewer (which is what keeps aliases out), bicubic where they become more."""
    if image.shape[:2] == size:
        return image
    fewer = image.shape[0] * image.shape[1] > size[0] * size[1]
    method = cv2.INTER_AREA if fewer else cv2.INTER_CUBIC
    return cv2.resize(image, size[::-1], interpolation=method).reshape(*size, image.shape[2])


def random_box(full: Size, config: AugmentConfig, rng: np.random.Generator) -> Box:
    """A box of random area and aspect ratio (Szegedy et al. 2015); the largest central one where none fits."""
    height, width = full
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*config.scale)
        ratio = math.exp(rng.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    ratio = min(max(width / height, config.ratio[0]), config.ratio[1])
    h, w = min(height, max(round(width / ratio), 1)), min(width, max(round(height * ratio), 1))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def shift(image: Pixels, padding: float, rng: np.random.Generator) -> Pixels:
    """A crop of the image's own size out of the image padded with black by a share of its sides."""
    height, width = image.shape[:2]
    pad_y, pad_x = round(padding * height), round(padding * width)
    dy, dx = int(rng.integers(-pad_y, pad_y + 1)), int(rng.integers(-pad_x, pad_x + 1))
    out = np.zeros_like(image)
    out[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)] = image[
        max(dy, 0) : height - max(-dy, 0), max(dx, 0) : width - max(-dx, 0)
    ]
    return out


def color_jitter(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast and saturation, in random order, each by a factor in 1 - strength .. 1 + strength."""
    for choice in rng.permutation(3).tolist():
        factor = rng.uniform(max(1 - strength, 0.0), 1 + strength)
        image = (brightness, contrast, saturation)[choice](image, factor)
    return image


def erase(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Noise in a random rectangle (random erasing, Zhong et al. 2020, in its per-pixel form)."""
    height, width, channels = image.shape
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*ERASE_SCALE)
        ratio = math.exp(rng.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            image = image.copy()
            image[top : top + h, left : left + w] = rng.integers(256, size=(h, w, channels), dtype=np.uint8)
            return image
    return image
