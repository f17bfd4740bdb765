"""Attention within windows of the image (Li et al. 2022, ViTDet), so that work grows with its area, not its square.

A patch reads the patches of its own window and the prefix tokens; prefix tokens read everything. Windows at the right
and bottom edges are smaller if the grid is not a multiple of them.

Legend: B batch, H heads, P prefix tokens, N = h * w patches, W windows of S patches, d width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.arithmetic import attention
from pipeline.models.spec import Pair, window_counts, window_sides


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, grid: Pair, most: int) -> Tensor:
    """Q, k and v [B, H, P+N, d] -> [B, H, P+N, d], in windows with sides of at most `most` patches."""
    sides = window_sides(grid, most)
    if sides == grid:
        return attention(q, k, v)
    num_prefix = q.shape[2] - grid[0] * grid[1]
    queries, keys, values = (_windows(x[:, :, num_prefix:], grid, sides) for x in (q, k, v))
    if num_prefix:
        per_image = math.prod(window_counts(grid, sides))
        keys, values = (
            torch.cat([x[:, :, :num_prefix].repeat_interleave(per_image, dim=0), within], dim=2)
            for x, within in ((k, keys), (v, values))
        )
    mask = _padding_mask(grid, sides, num_prefix, q.device)
    of_patches = attention(queries, keys, values, mask=None if mask is None else mask.repeat(len(q), 1, 1, 1))
    of_patches = _joined(of_patches, grid, sides)
    if not num_prefix:
        return of_patches
    return torch.cat([attention(q[:, :, :num_prefix], k, v), of_patches], dim=2)


def window_mask(grid: Pair, most: int, num_prefix: int) -> Tensor:
    """Bool [P+N, P+N]: which token (row) reads which in a windowed layer."""
    rows, columns = (torch.arange(length) // side for length, side in zip(grid, window_sides(grid, most), strict=True))
    window = (rows[:, None] * grid[1] + columns).flatten()
    reads = torch.ones(num_prefix + len(window), num_prefix + len(window), dtype=torch.bool)
    reads[num_prefix:, num_prefix:] = window[:, None] == window
    return reads


def _windows(patches: Tensor, grid: Pair, sides: Pair) -> Tensor:
    """[B, H, N, d] -> [B * W, H, S, d], zeros where a window reaches beyond the grid."""
    (down, across), (height, width) = window_counts(grid, sides), sides
    x = patches.unflatten(2, grid)
    x = F.pad(x, (0, 0, 0, across * width - grid[1], 0, down * height - grid[0]))
    x = x.unflatten(3, (across, width)).unflatten(2, (down, height))  # [B, H, down, height, across, width, d]
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def _joined(windows: Tensor, grid: Pair, sides: Pair) -> Tensor:
    """The inverse of `_windows`: [B * W, H, S, d] -> [B, H, N, d]."""
    counts = window_counts(grid, sides)
    x = windows.unflatten(0, (-1, *counts)).unflatten(4, sides)  # [B, down, across, H, height, width, d]
    x = x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return x[:, :, : grid[0], : grid[1]].flatten(2, 3)


def _padding_mask(grid: Pair, sides: Pair, num_prefix: int, device: torch.device) -> Tensor | None:
    """Bool [W, 1, 1, P + S]: which keys of each window are tokens, not padding; None if all are."""
    if not (grid[0] % sides[0] or grid[1] % sides[1]):
        return None
    within = _windows(torch.ones(1, 1, grid[0] * grid[1], 1, dtype=torch.bool, device=device), grid, sides)
    return F.pad(within.squeeze(3)[:, :, None], (num_prefix, 0), value=True)
