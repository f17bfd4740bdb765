"""Fashion-MNIST's items, cut out of their black background, rotated and scaled.

The background is exactly black, so everything brighter is the silhouette; pinholes in dark cloth are closed, but the
holes under a bag's handle or between a sandal's straps stay open.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import DataError
from pipeline.shards.make._fashion_mnist_files import read_split
from pipeline.shards.make.fashion_mnist import check_fashion_mnist

GROUND = 8  # grey values up to this are background
PINHOLE = 12  # pixels of 28x28: smaller holes are closed
MIN_PIXELS = 60  # an item with fewer is too thin to recognise
HELD_OUT = 12  # one in this many training items is held out for val
SOFTNESS = 0.6  # standard deviation, in pixels of 28x28, that smooths the steps of an enlarged silhouette
OUTER = 1 / 5  # of an item's height or width: the part at each side whose mean is a keypoint
SHADE = 0.6, 1.0  # an item's darkest and brightest cloth, as a factor of its colour


@dataclass(frozen=True)
class ItemPool:
    """The items for the scenes of one split."""

    images: np.ndarray  # uint8 [N, 28, 28]
    labels: np.ndarray  # uint8 [N], 0 to 9


@dataclass(frozen=True)
class Cutout:
    """An item as it appears in the scene, cropped to its outline."""

    alpha: np.ndarray  # float32 [H, W], 0 to 1; the silhouette is where it is at least 0.5
    shade: np.ndarray  # float32 [H, W], factor of the item's colour
    points: np.ndarray  # int [5, 2], (column, row) of top, bottom, left, right and centre, all on the silhouette

    @property
    def silhouette(self) -> np.ndarray:
        return self.alpha >= 0.5


@lru_cache(maxsize=3)
def item_pool(folder: Path, split: str) -> ItemPool:
    """The items of "train", "val" or "test": no item is in two of them.

    val is the last twelfth of the training file, test the test file. Raises DataError for files of other data sets.
    """
    source = "test" if split == "test" else "train"
    data = read_split(folder, source)
    check_fashion_mnist(data, folder, source)
    first_held_out = len(data.labels) - len(data.labels) // HELD_OUT
    part = {"train": slice(first_held_out), "val": slice(first_held_out, None), "test": slice(None)}[split]
    images, labels = data.images[part], data.labels[part]
    usable = (images > GROUND).sum(axis=(1, 2)) >= MIN_PIXELS
    if not usable.any():
        raise DataError(
            f"{folder}: its {source} files have no items for {split}; give Fashion-MNIST's folder with --src"
        )
    return ItemPool(images[usable], labels[usable])


def cut_item_out(image: np.ndarray, side: float, degrees: float) -> Cutout:
    """An item (uint8 [28, 28]) with its frame scaled to `side` pixels and rotated clockwise about its centre."""
    mask = item_mask(image)
    rounded = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), SOFTNESS)
    planes = np.dstack([rounded, item_shade(image, mask)]).astype(np.float32)
    scale = side / len(image)
    turned = int(np.ceil(side * np.sqrt(2))) + 2
    matrix = cv2.getRotationMatrix2D(((len(image) - 1) / 2,) * 2, -degrees, scale)
    matrix = matrix + [[0, 0, (turned - len(image)) / 2]] * 2
    mean_shade = float(planes[mask, 1].mean())  # outside: avoids a dark fringe from interpolation
    warped = cv2.warpAffine(planes, matrix, (turned, turned), flags=cv2.INTER_CUBIC, borderValue=(0, mean_shade))
    alpha = ((warped[..., 0] - 0.5) * max(scale, 1) + 0.5).clip(0, 1)  # an edge is one pixel wide at any scale
    rows, columns = (np.flatnonzero((alpha > 0).any(axis)) for axis in (1, 0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    points = item_points(mask) @ matrix[:, :2].T + matrix[:, 2] - (columns[0], rows[0])
    alpha, shade = alpha[window], warped[..., 1][window].clip(*SHADE)
    return Cutout(alpha, shade, nearest_of_silhouette(points, alpha >= 0.5))


def item_mask(image: np.ndarray) -> np.ndarray:
    """The silhouette, bool [28, 28]."""
    mask = image > GROUND
    _, holes, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    x, y, width, height, area = stats.T
    edge = (x == 0) | (y == 0) | (x + width == mask.shape[1]) | (y + height == mask.shape[0])
    return mask | ((area < PINHOLE) & ~edge)[holes]


def item_shade(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Factors of the item's colour, float [28, 28]: its own brightness, stretched to SHADE."""
    dark, bright = np.percentile(image[mask], (5, 95))
    shade = SHADE[0] + (SHADE[1] - SHADE[0]) * ((image - dark) / max(bright - dark, 32)).clip(0, 1)
    return np.where(mask, shade, shade[mask].mean())


def item_points(mask: np.ndarray) -> np.ndarray:
    """Float [5, 2], (column, row): means of the upright item's top, bottom, left and right fifths, and of the whole.

    A single outermost pixel would move from one end of a hem to the other with a slightly different silhouette.
    """
    rows, columns = np.nonzero(mask)
    outer = [outward > outward.max() - OUTER * (np.ptp(outward) + 1) for outward in (-rows, rows, -columns, columns)]
    return np.array([(columns[part].mean(), rows[part].mean()) for part in (*outer, slice(None))])


def nearest_of_silhouette(points: np.ndarray, silhouette: np.ndarray) -> np.ndarray:
    """The silhouette pixel nearest to each point, int [N, 2]; the rounded points if the silhouette is empty."""
    pixels = np.argwhere(silhouette)[:, ::-1]
    if not len(pixels):
        return np.rint(points).astype(int)
    distances = ((points[:, None] - pixels) ** 2).sum(axis=2)
    return pixels[distances.argmin(axis=1)]
