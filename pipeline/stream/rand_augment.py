"""RandAugment (Cubuk et al. 2020) on uint8 arrays.

The operations, their ranges and the 31 magnitude bins are torchvision's. They are reimplemented with OpenCV and lookup
tables, because tensor operations cost several times as much as decoding a small image, and so that a single NumPy
generator makes every draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.config.data import RandAugmentConfig
from pipeline.images.decode import Pixels
from pipeline.images.geometry import Matrix, Size, Trail, warped

Operation = Callable[[Pixels, float], Pixels]

MAX_MAGNITUDE = 30
LEVELS = np.arange(256, dtype=np.float32)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13


def look_up(image: Pixels, table: np.ndarray) -> Pixels:
    """Map every value through a table of 256 entries."""
    return cv2.LUT(image, np.clip(np.floor(table + 0.5), 0, 255).astype(np.uint8)).reshape(image.shape)


def brightness(image: Pixels, factor: float) -> Pixels:
    return look_up(image, LEVELS * factor)


def contrast(image: Pixels, factor: float) -> Pixels:
    mean = float(grey(image).mean())
    return look_up(image, mean + (LEVELS - mean) * factor)


def saturation(image: Pixels, factor: float) -> Pixels:
    if image.shape[2] == 1:
        return image
    return blend(image, cv2.cvtColor(grey(image), cv2.COLOR_GRAY2RGB), factor)


def sharpness(image: Pixels, factor: float) -> Pixels:
    if min(image.shape[:2]) < 3:
        return image
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, SMOOTH).reshape(image.shape)[1:-1, 1:-1]
    return blend(image, smooth, factor)


def posterize(image: Pixels, bits: float) -> Pixels:
    return image & np.uint8(256 - (1 << (8 - int(bits))))


def solarize(image: Pixels, threshold: float) -> Pixels:
    return look_up(image, np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS))


def auto_contrast(image: Pixels, _: float) -> Pixels:
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    return per_channel(image, lambda plane, c: stretch(plane, float(low[c]), float(high[c])))


def equalize(image: Pixels, _: float) -> Pixels:
    return per_channel(image, lambda plane, c: flatten_histogram(plane))


@dataclass(frozen=True)
class Warp:
    """An operation that moves pixels by an OpenCV matrix; areas from outside the image are black."""

    matrix_of: Callable[[Size, float], list[list[float]] | Matrix]

    def __call__(self, image: Pixels, value: float) -> Pixels:
        height, width = image.shape[:2]
        matrix = self.matrix((height, width), value)
        return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR).reshape(image.shape)

    def matrix(self, size: Size, value: float) -> Matrix:
        return np.asarray(self.matrix_of(size, value), dtype=np.float64)


def rotation(size: Size, degrees: float) -> Matrix:
    height, width = size
    return cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)


shear_x = Warp(lambda size, amount: [[1, amount, 0], [0, 1, 0]])
shear_y = Warp(lambda size, amount: [[1, 0, 0], [amount, 1, 0]])
translate_x = Warp(lambda size, share: [[1, 0, round(share * size[1])], [0, 1, 0]])
translate_y = Warp(lambda size, share: [[1, 0, 0], [0, 1, round(share * size[0])]])
rotate = Warp(rotation)


def identity(image: Pixels, _: float) -> Pixels:
    return image


# Name: operation, its value at magnitude m in 0..1, and whether the sign is random. For blends the value is added to a
# factor of 1. One more would change what every pipeline with RandAugment draws.
OPERATIONS: dict[str, tuple[Operation, Callable[[float], float], bool]] = {
    "identity": (identity, lambda m: 0.0, False),
    "shear_x": (shear_x, lambda m: 0.3 * m, True),
    "shear_y": (shear_y, lambda m: 0.3 * m, True),
    "translate_x": (translate_x, lambda m: 150 / 331 * m, True),
    "translate_y": (translate_y, lambda m: 150 / 331 * m, True),
    "rotate": (rotate, lambda m: 30.0 * m, True),
    "brightness": (lambda image, change: brightness(image, 1 + change), lambda m: 0.9 * m, True),
    "color": (lambda image, change: saturation(image, 1 + change), lambda m: 0.9 * m, True),
    "contrast": (lambda image, change: contrast(image, 1 + change), lambda m: 0.9 * m, True),
    "sharpness": (lambda image, change: sharpness(image, 1 + change), lambda m: 0.9 * m, True),
    "posterize": (posterize, lambda m: 8 - math.floor(4 * m + 0.5), False),
    "solarize": (solarize, lambda m: 255.0 * (1 - m), False),
    "auto_contrast": (auto_contrast, lambda m: 0.0, False),
    "equalize": (equalize, lambda m: 0.0, False),
}
NAMES = tuple(OPERATIONS)


def rand_augment(
    image: Pixels, config: RandAugmentConfig, rng: np.random.Generator, trail: Trail | None = None
) -> Pixels:
    """Apply `config.ops` operations in sequence, each drawn uniformly, all at `config.magnitude` out of 30."""
    for choice in rng.integers(len(NAMES), size=config.ops).tolist():
        operation, value_at, signed = OPERATIONS[NAMES[choice]]
        value = value_at(config.magnitude / MAX_MAGNITUDE)
        if signed and rng.random() < 0.5:
            value = -value
        if trail is not None and isinstance(operation, Warp):
            size = image.shape[0], image.shape[1]
            trail.add(warped(size, operation.matrix(size, value)))
        image = operation(image, value)
    return image


def grey(image: Pixels) -> np.ndarray:
    """Luma, uint8 [height, width]."""
    return image[:, :, 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def blend(image: Pixels, other: Pixels, factor: float) -> Pixels:
    """Interpolate or extrapolate: factor * image + (1 - factor) * other, rounded and clipped."""
    return cv2.addWeighted(image, factor, other, 1 - factor, 0).reshape(image.shape)


def stretch(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    return plane if high <= low else look_up(plane, (LEVELS - low) * (255 / (high - low)))


def flatten_histogram(plane: np.ndarray) -> np.ndarray:
    """Equalise a plane as Pillow and torchvision do; OpenCV's result differs by up to a histogram bin."""
    histogram = np.bincount(plane.ravel(), minlength=256)
    step = (plane.size - histogram[histogram > 0][-1]) // 255
    if step == 0:
        return plane
    return look_up(plane, (np.cumsum(histogram) - histogram + step // 2) // step)


def per_channel(image: Pixels, operation: Callable[[np.ndarray, int], np.ndarray]) -> Pixels:
    planes = [operation(np.ascontiguousarray(image[:, :, c]), c) for c in range(image.shape[2])]
    return np.stack(planes, axis=2)
