"""Conversion of keypoints to heat maps and back.

Legend: n instances, K keypoints, (h, w) cells of the maps, (H, W) pixels of the views. Cell c covers c to c + 1, as
pixels do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.spec import Pair

LEAST = 1e-10  # minimum of heat map values, so that their log exists


def gaussians(points: Tensor, view: Pair, cells: Pair, sigma: float) -> Tensor:
    """fp32 [n, K, h, w], 1 at the keypoints: `points` [n, K, 2] are (x, y) in pixels of a view [H, W].

    `sigma` is the standard deviation in cells.
    """
    axes = []
    for axis, (side, count) in enumerate(zip(view[::-1], cells[::-1], strict=True)):
        where = torch.arange(count, device=points.device) + 0.5
        offset = where - points[..., axis, None].float() * (count / side)  # [n, K, count]
        axes.append(torch.exp(-offset.square() / (2 * sigma**2)))
    across, down = axes
    return down[..., :, None] * across[..., None, :]


def peaks(maps: Tensor, view: Pair) -> Tensor:
    """fp32 [n, K, 3]: (x, y) of the maximum in pixels of the view, and the value of the highest cell.

    The sub-cell position along each axis is the centre of a Gaussian through the highest cell and its neighbours, found
    as the vertex of a parabola through their logs (after Zhang et al. 2020, "DARK").
    """
    h, w = maps.shape[2:]
    score, cell = maps.flatten(2).max(dim=2)
    row, column = cell // w, cell % w
    logs = maps.clamp(min=LEAST).log()

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        """Logs at these cells, [n, K]; cells outside the map use its border."""
        return logs.flatten(2).gather(2, (rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1))[..., None])[..., 0]

    middle = at(row, column)
    found = []
    for place, before, after, count, side in (
        (column, at(row, column - 1), at(row, column + 1), w, view[1]),
        (row, at(row - 1, column), at(row + 1, column), h, view[0]),
    ):
        inside = (place > 0) & (place < count - 1)
        bend = (2 * middle - before - after).clamp(min=LEAST)
        shift = ((after - before) / (2 * bend)).clamp(-0.5, 0.5) * inside
        found.append((place + 0.5 + shift) * (side / count))
    return torch.stack([*found, score], dim=2)
