"""Tracks where the pixels of an image end up in a model's input, so that points and class maps can follow.

Coordinates are (x, y) in pixels. The pixel in row r and column c covers r to r + 1 and c to c + 1, so its centre is at
(c + 0.5, r + 0.5), and an image of size (H, W) reaches from (0, 0) to (W, H).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

Size = tuple[int, int]  # height, width
Matrix = np.ndarray  # float64 [2, 3]: multiplies (x, y, 1)

ROUNDING = 1e-6  # pixels
WARP_LIMIT = (1 << 15) - 1  # side in pixels from which OpenCV cannot warp


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def right(self) -> int:
        return self.left + self.width


class Turn(NamedTuple):
    """How to turn stored pixels upright: transpose first, then flip."""

    transpose: bool
    flip_rows: bool
    flip_columns: bool


class Frame(NamedTuple):
    """A rectangle 0 to width, 0 to height in the coordinates that `matrix` maps the source to; the rest is hidden."""

    size: Size
    matrix: Matrix


@dataclass(frozen=True, eq=False)
class Geometry:
    """An affine map from the pixels of an image of size `source` to those of an image of size `size`.

    Added borders, black or reflected, and corners that a warp leaves black show nothing of the source: they lie outside
    the source or outside one of `frames`, the regions that earlier steps of a composition left visible.
    """

    source: Size
    size: Size
    matrix: Matrix
    frames: tuple[Frame, ...] = ()

    def then(self, step: Geometry) -> Geometry:
        """Composes this map with `step`, whose source is this map's output."""
        assert step.source == self.size, f"{step.source} cannot follow {self.size}"
        frames = self.frames
        if step.frames or not step.within():
            frames += (Frame(self.size, self.matrix),)
        frames += tuple(Frame(size, compose(self.matrix, matrix)) for size, matrix in step.frames)
        return Geometry(self.source, step.size, compose(self.matrix, step.matrix), frames)

    def within(self) -> bool:
        """Whether the whole output lies in the source."""
        rows = inverted(self.matrix).tolist()
        corners = [(x, y) for x in (0, self.size[1]) for y in (0, self.size[0])]
        return all(
            -ROUNDING <= a * x + b * y + c <= side + ROUNDING
            for (a, b, c), side in zip(rows, self.source[::-1], strict=True)
            for x, y in corners
        )

    def inverse(self) -> Geometry:
        """The inverse map; what this map cropped stays lost."""
        return Geometry(self.size, self.source, inverted(self.matrix))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Maps points of the source to the output, float64 [N, 2]; they may lie outside it."""
        return transform(self.matrix, points)

    def warp_mask(self, mask: np.ndarray, fill: int = -1) -> np.ndarray:
        """Warps a mask: each output pixel takes the source pixel that contains its centre.

        Args:
            mask: class ids, integers of 8 or 16 bits, or float32 measurements [source height, source width].
            fill: value of pixels that show nothing of the source.

        Returns:
            [height, width] in the mask's dtype.
        """
        assert mask.shape == self.source, f"a mask of {mask.shape} for an image of {self.source}"
        back = inverted(self.matrix)
        if back[0, 0] == back[1, 1] == 0:  # a quarter turn: rows are columns
            mask, back = mask.T, back[::-1]
        if back[0, 1] == back[1, 0] == 0:
            rows, bad_rows = containing_pixels(back[1, 1], back[1, 2], self.size[0], mask.shape[0])
            columns, bad_columns = containing_pixels(back[0, 0], back[0, 2], self.size[1], mask.shape[1])
            out = mask[rows][:, columns]
            if bad_rows.any() or bad_columns.any():
                out[bad_rows] = out[:, bad_columns] = fill
        elif max(mask.shape) >= WARP_LIMIT:
            out = sampled_mask(mask, back, self.size, fill)
        else:
            out = cv2.warpAffine(
                mask,
                shifted(back, 0.5),
                self.size[::-1],
                flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=fill,
            )
        for frame in self.frames:
            out[self._outside(frame)] = fill
        return out

    def _outside(self, frame: Frame) -> np.ndarray:
        """Which output pixels' centres lie outside the frame, bool [height, width]."""
        matrix = compose(inverted(self.matrix), frame.matrix)
        outside = np.zeros(self.size, bool)
        across, down = (np.arange(side) + 0.5 for side in self.size[::-1])
        for (a, b, c), side in zip(matrix, frame.size[::-1], strict=True):
            along = a * across + (b * down + c)[:, None]
            outside |= (along < -ROUNDING) | (along > side + ROUNDING)
        return outside


class Trail:
    """Composes the geometry of an image from the steps that functions report; pass them None if it is not needed."""

    def __init__(self) -> None:
        self._geometry: Geometry | None = None

    def add(self, step: Geometry) -> None:
        self._geometry = step if self._geometry is None else self._geometry.then(step)

    @property
    def geometry(self) -> Geometry:
        assert self._geometry is not None, "no step was reported"
        return self._geometry


def cropped(source: Size, box: Box | tuple[float, float, float, float], size: Size) -> Geometry:
    """A box (top, left, height, width) of the source, fractional or not, resized to `size`."""
    top, left, height, width = box
    down, across = size[0] / height, size[1] / width
    return Geometry(source, size, as_matrix([[across, 0, -left * across], [0, down, -top * down]]))


def placed(source: Size, top: int, left: int, size: Size) -> Geometry:
    """The source, not resized, at row `top` and column `left` of an output of `size`; both may be negative."""
    return Geometry(source, size, as_matrix([[1, 0, left], [0, 1, top]]))


def flipped(source: Size) -> Geometry:
    """A horizontal flip."""
    return Geometry(source, source, as_matrix([[-1, 0, source[1]], [0, 1, 0]]))


def turned(source: Size, turn: Turn) -> Geometry:
    """Stored pixels turned upright."""
    height, width = source[::-1] if turn.transpose else source
    matrix = as_matrix([[0, 1, 0], [1, 0, 0]] if turn.transpose else [[1, 0, 0], [0, 1, 0]])
    if turn.flip_columns:
        matrix[0] = [0, 0, width] - matrix[0]
    if turn.flip_rows:
        matrix[1] = [0, 0, height] - matrix[1]
    return Geometry(source, (height, width), matrix)


def warped(source: Size, matrix: Matrix) -> Geometry:
    """What OpenCV's `warpAffine` does with `matrix`, whose coordinates put pixel centres at integers."""
    return Geometry(source, source, shifted(matrix, -0.5))


def compose(first: Matrix, second: Matrix) -> Matrix:
    """The map that applies `first`, then `second`."""
    out = second[:, :2] @ first
    out[:, 2] += second[:, 2]
    return out


def inverted(matrix: Matrix) -> Matrix:
    (a, b, x), (c, d, y) = matrix.tolist()
    scale = 1 / (a * d - b * c)
    a, b, c, d = d * scale, -b * scale, -c * scale, a * scale
    return as_matrix([[a, b, -(a * x + b * y)], [c, d, -(c * x + d * y)]])


def transform(matrix: Matrix, points: np.ndarray) -> np.ndarray:
    """Applies a matrix to points [N, 2]; returns float64 [N, 2]."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def shifted(matrix: Matrix, by: float) -> Matrix:
    """The same map in coordinates whose origin lies `by` further right and down."""
    return np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2].sum(axis=1) * by - by])


def as_matrix(rows: list[list[float]]) -> Matrix:
    return np.array(rows, dtype=np.float64)


def sampled_mask(mask: np.ndarray, back: np.ndarray, size: Size, fill: int) -> np.ndarray:
    """Samples the mask pixels to which `back` maps the output's centres; slower than a warp, but for any size."""
    across, down = np.arange(size[1]) + 0.5, (np.arange(size[0]) + 0.5)[:, None]
    columns, rows = (np.floor(a * across + b * down + c).astype(np.int64) for a, b, c in back)
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    return np.where(inside, mask[np.where(inside, rows, 0), np.where(inside, columns, 0)], mask.dtype.type(fill))


def containing_pixels(step: float, start: float, length: int, full: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `length` pixel centres, the pixel that contains it on an axis of `full`, and whether none does.

    A centre x lies at `start + step * x` on that axis.
    """
    where = np.floor(start + step * (np.arange(length) + 0.5)).astype(np.intp)
    return where.clip(0, full - 1), (where < 0) | (where >= full)
