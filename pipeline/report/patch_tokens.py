"""How the encoder represents patches: the first three principal components of its tokens as colours."""

from __future__ import annotations

import numpy as np

COLOURS = 3
ENDS = 1.0, 99.0  # percentiles that become the ends of a colour


def token_colors(tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """uint8 [B, h, w, 3] for the patch tokens [B, h*w, D] of several images, with components shared across images.

    So equal colours mean similar tokens, within an image and across images (Oquab et al. 2023, DINOv2).
    """
    rows = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    kept = rows @ directions[:COLOURS].T
    kept *= np.where(np.median(kept, axis=0) > 0, -1, 1)  # the sign of a component is arbitrary
    low, high = np.percentile(kept, ENDS, axis=0)
    shares = ((kept - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colors = np.zeros((len(rows), COLOURS))
    colors[:, : shares.shape[1]] = shares
    picture: np.ndarray = (255 * colors).round().astype(np.uint8)
    return picture.reshape(len(tokens), *grid, COLOURS)
