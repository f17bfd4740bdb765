"""Composing a scene: items in front of a wall, from the farthest to the nearest, each hiding what lies behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.shards.make._scenes_canvas import FARTHEST_MM, draw_canvas
from pipeline.shards.make._scenes_items import Cutout, ItemPool, cut_item_out

GENERATOR = 2  # raise it whenever the same settings would draw other pictures
COLOURS = {
    "red": (0.85, 0.10, 0.10),
    "orange": (1.00, 0.50, 0.05),
    "yellow": (0.98, 0.88, 0.15),
    "green": (0.12, 0.62, 0.18),
    "blue": (0.12, 0.28, 0.88),
    "purple": (0.50, 0.15, 0.68),
    "pink": (1.00, 0.50, 0.75),
    "brown": (0.45, 0.25, 0.10),
    "black": (0.10, 0.10, 0.11),
    "white": (0.97, 0.97, 0.97),
}
COLOUR_SHIFT = 0.04  # of each channel, at most
NEAR_MM, FAR_MM = 1_200, 2_400  # of items; the wall begins behind them
NEAR_SHARE = 0.72  # of the shorter side that an item's frame takes at NEAR_MM; it falls with 1 / depth
MOST_ITEMS = 6
EMPTY_SHARE = 0.02  # of the scenes hold no item
MOST_DEGREES = 30.0  # largest rotation of an item, either way
OVERHANG = 0.25  # share of an item that may lie beyond each side of the picture
MIN_VISIBLE = 0.3  # share of a silhouette; an item that would leave less of another, or of itself, is dropped
FADE = 0.4  # share of light that the farthest wall loses


@dataclass(frozen=True)
class SceneItem:
    """One item of a scene. Its silhouette and points may lie behind others or beyond the picture."""

    label: int  # Fashion-MNIST's, 0 to 9
    colour: str
    depth_mm: int
    left: int  # position of the silhouette's array in the picture
    top: int
    silhouette: np.ndarray  # bool [h, w]
    points: np.ndarray  # int [5, 2], (column, row) in the picture: top, bottom, left, right, centre


@dataclass(frozen=True)
class Scene:
    """Items from the farthest to the nearest."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    owner: np.ndarray  # uint8 [H, W]: 0 for the wall, otherwise the number of the visible item, from 1
    depth_mm: np.ndarray  # uint16 [H, W]
    items: list[SceneItem]


def draw_scene(pool: ItemPool, height: int, width: int, rng: np.random.Generator, count: int | None = None) -> Scene:
    """A scene of at most `count` items of the pool, by default of 0 to MOST_ITEMS; `rng` determines everything."""
    image, depth = draw_canvas(height, width, rng)
    image *= light(depth)[..., None]
    owner = np.zeros((height, width), np.uint8)
    items: list[SceneItem] = []
    if count is None:
        count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, MOST_ITEMS + 1))
    for depth_mm in sorted(rng.choice(FAR_MM - NEAR_MM, count, replace=False) + NEAR_MM, reverse=True):
        row = int(rng.integers(len(pool.labels)))
        picture = pool.images[row][:, :: rng.choice((1, -1))]
        side = NEAR_SHARE * min(height, width) * NEAR_MM / depth_mm
        cutout = cut_item_out(picture, side, rng.uniform(-MOST_DEGREES, MOST_DEGREES))
        top, left = (
            draw_position(*sizes, bool(items), rng) for sizes in zip((height, width), cutout.alpha.shape, strict=True)
        )
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        tint = np.array(COLOURS[colour], np.float32) + rng.uniform(-COLOUR_SHIFT, COLOUR_SHIFT, 3).astype(np.float32)
        points = cutout.points + np.array([left, top])
        item = SceneItem(int(pool.labels[row]), colour, int(depth_mm), left, top, cutout.silhouette, points)
        covered = cover(owner, item, items)
        if covered is not None:
            owner = covered
            paint(image, cutout, tint * light(depth_mm), top, left)
            depth[owner == len(items) + 1] = depth_mm
            items.append(item)
    return Scene(np.rint(image.clip(0, 1) * 255).astype(np.uint8), owner, np.rint(depth).astype(np.uint16), items)


def draw_position(picture: int, item: int, may_overhang: bool, rng: np.random.Generator) -> int:
    """Where an item begins along one side of the picture; the first lies wholly inside, so that it is never dropped."""
    beyond = int(item * OVERHANG) if may_overhang else 0
    return int(rng.integers(-beyond, picture - item + beyond + 1))


def cover(owner: np.ndarray, item: SceneItem, others: list[SceneItem]) -> np.ndarray | None:
    """`owner` with the item in front of the others; None if too little of any item remains visible."""
    inside, cropped = overlapping_slices(owner.shape, item.silhouette.shape, item.top, item.left)
    covered = owner.copy()
    covered[inside][item.silhouette[cropped]] = len(others) + 1
    whole = np.array([one.silhouette.sum() for one in (*others, item)])
    seen = np.bincount(covered.ravel(), minlength=len(whole) + 1)[1:]
    return covered if (seen > MIN_VISIBLE * whole).all() else None


def paint(image: np.ndarray, cutout: Cutout, colour: np.ndarray, top: int, left: int) -> None:
    """Blend an item into the image, in place."""
    inside, cropped = overlapping_slices(image.shape, cutout.alpha.shape, top, left)
    alpha, shade = cutout.alpha[cropped][..., None], cutout.shade[cropped][..., None]
    image[inside] += alpha * (shade * colour - image[inside])


def overlapping_slices(
    picture: tuple[int, ...], part: tuple[int, ...], top: int, left: int
) -> tuple[tuple[slice, slice], ...]:
    """The overlap of the picture with a part at (top, left): slices of the picture, and of the part."""
    starts = max(top, 0), max(left, 0)
    stops = min(top + part[0], picture[0]), min(left + part[1], picture[1])
    rows, columns = (slice(start, max(stop, start)) for start, stop in zip(starts, stops, strict=True))
    return (rows, columns), (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )


def light(depth_mm: np.ndarray | int) -> np.ndarray:
    """A factor of the colour that makes farther things darker."""
    return np.float32(1) - np.float32(FADE) * (np.asarray(depth_mm, np.float32) - NEAR_MM) / (FARTHEST_MM - NEAR_MM)
