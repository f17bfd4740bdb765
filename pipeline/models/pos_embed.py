"""Position embeddings: resizing between grids, and sine-cosine positions.

Legend: P prefix tokens, (h, w) patch grid, N = h * w, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.config.architecture import FewerPatches
from pipeline.models.resize import graph_matrix, resize_tensor
from pipeline.models.spec import Pair


def resize_positions(pos_embed: Tensor, old_grid: Pair, new_grid: Pair) -> Tensor:
    """[1, P+N, D] -> [1, P+N', D]: bicubic with antialiasing, computed in fp32, differentiable.

    Compares grids, not counts: (2, 8) -> (4, 4) is a change. Rows before the N grid rows stay unchanged.
    """
    known = is_known(new_grid)
    if known and tuple(old_grid) == tuple(new_grid):
        return pos_embed
    num_prefix = pos_embed.shape[1] - old_grid[0] * old_grid[1]
    prefix, grid = pos_embed[:, :num_prefix], pos_embed[0, num_prefix:]
    dtype = torch.promote_types(pos_embed.dtype, torch.float32)
    down, across = (
        resize_tensor(old, new, dtype, pos_embed.device) if known else graph_matrix(old, new, pos_embed.device)
        for old, new in zip(old_grid, new_grid, strict=True)
    )
    grid = grid.to(dtype).unflatten(0, old_grid)  # [h, w, D]
    grid = torch.einsum("ah,bw,hwd->abd", down, across, grid)
    return torch.cat([prefix, grid.flatten(0, 1)[None].to(pos_embed.dtype)], dim=1)


def is_known(grid: Pair) -> bool:
    """Whether a grid holds plain numbers, not the symbols of a graph being traced for images of any size."""
    return all(isinstance(side, int) for side in grid)


def fit_positions(pos_embed: Tensor, old_grid: Pair, new_grid: Pair, fewer_patches: FewerPatches) -> Tensor:
    """[1, P+N, D] -> [1, P+N', D], for an image or a model with another grid.

    Resizes; or, for fewer patches and `slice`, cuts off after P+N' rows as the tutorial does, ignoring their places.
    """
    if fewer_patches == "slice":
        missing = old_grid[0] * old_grid[1] - new_grid[0] * new_grid[1]
        if missing > 0:
            return pos_embed[:, : pos_embed.shape[1] - missing]
    return resize_positions(pos_embed, old_grid, new_grid)


def sincos_positions(grid: Pair, dim: int, num_prefix: int = 0) -> Tensor:
    """[1, P+N, D] fixed 2-D sine-cosine positions (MoCo v3, Chen et al. 2021; MAE, He et al. 2022); prefix rows are 0.

    A quarter of the width each: sin and cos of the column, sin and cos of the row; periods from 2 pi to 10000 * 2 pi.
    """
    quarter = dim // 4
    omega = torch.exp(-math.log(10000.0) * torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * omega for axis in (columns, rows)]  # each [N, D/4]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([table.new_zeros(num_prefix, dim), table])[None].float()
