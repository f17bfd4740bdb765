"""The background of a scene: a slanted wall with a procedural texture in two muted colours."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

NEAREST_MM, FARTHEST_MM = 4_000.0, 8_000.0  # of the wall
LEAST_SLANT_MM = 1_000.0  # from its nearest to its farthest corner
SATURATION, VALUE = (0.05, 0.35), (0.3, 0.9)
GRAIN = 0.03  # standard deviation of the noise of every texture

TextureField = np.ndarray  # float32 [H, W], 0 to 1: how much of the second colour


def draw_canvas(height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours, float32 [H, W, 3] RGB from 0 to 1, and depth, float32 [H, W] in millimetres."""
    first, second = muted_colour(rng), muted_colour(rng)
    texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
    field = texture(height, width, rng) + GRAIN * rng.standard_normal((height, width), np.float32)
    return first + (second - first) * field.clip(0, 1)[..., None], slanted_wall(height, width, rng)


def slanted_wall(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A plane that recedes roughly towards the top: depth in millimetres, float32 [H, W]."""
    nearest = rng.uniform(NEAREST_MM, FARTHEST_MM - LEAST_SLANT_MM)
    farthest = rng.uniform(nearest + LEAST_SLANT_MM, FARTHEST_MM)
    angle = rng.uniform(-np.pi / 3, np.pi / 3)
    y, x = np.ogrid[0.0:height, 0.0:width]
    along = np.sin(angle) * x / width - np.cos(angle) * y / height
    along = (along - along.min()) / np.ptp(along)
    return (nearest + (farthest - nearest) * along).astype(np.float32)


def muted_colour(rng: np.random.Generator) -> np.ndarray:
    """RGB from 0 to 1, float32 [3], too pale to be mistaken for an item's."""
    hue, saturation, value = rng.random(), rng.uniform(*SATURATION), rng.uniform(*VALUE)
    pure = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation * (1 - pure))).astype(np.float32)


def clouds(height: int, width: int, rng: np.random.Generator) -> TextureField:
    """Noise at four scales."""
    field = np.zeros((height, width), np.float32)
    for cells, weight in ((3, 0.5), (6, 0.25), (12, 0.15), (24, 0.1)):
        field += weight * smooth_noise(cells, cells, height, width, rng)
    return ((field - 0.5) * 2 + 0.5).clip(0, 1)


def wood(height: int, width: int, rng: np.random.Generator) -> TextureField:
    """Fibres along one side."""
    cells = (2, 40) if rng.random() < 0.5 else (40, 2)
    return smooth_noise(*cells, height, width, rng)


def stripes(height: int, width: int, rng: np.random.Generator) -> TextureField:
    return (0.5 + 0.5 * waves(height, width, rng.uniform(0, np.pi), rng)).astype(np.float32)


def checks(height: int, width: int, rng: np.random.Generator) -> TextureField:
    angle = rng.uniform(0, np.pi)
    crossed = waves(height, width, angle, rng) * waves(height, width, angle + np.pi / 2, rng)
    return (0.5 + crossed * 4).clip(0, 1).astype(np.float32)


def smooth_noise(rows: int, columns: int, height: int, width: int, rng: np.random.Generator) -> TextureField:
    """Random values on a grid of cells, interpolated."""
    grid = rng.random((rows, columns), np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)).clip(0, 1)


def waves(height: int, width: int, angle: float, rng: np.random.Generator) -> np.ndarray:
    """Sine waves of 10 to 40 pixels, float [H, W], -1 to 1."""
    period, phase = rng.uniform(10, 40), rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[0.0:height, 0.0:width]
    return np.sin(2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + phase)


TEXTURES: tuple[Callable[[int, int, np.random.Generator], TextureField], ...] = (clouds, wood, stripes, checks)
