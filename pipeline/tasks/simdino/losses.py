"""The two terms of SimDINO's loss (Wu et al. 2025).

Legend: B batch, n samples of a rank, N of the global batch, V views, G global views, d embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.tasks.ranks import Ranks


def misalignment(embeddings: Tensor, goals: Tensor) -> Tensor:
    """One minus the cosine, half the squared distance, between unit vectors [B, V, d] and goals [B, G, d]: fp32 [B].

    The mean over all pairs except those of the same view; the first G views correspond to the goals.
    """
    apart = 1 - embeddings @ goals.transpose(1, 2)  # [B, V, G]
    same = apart.diagonal(dim1=1, dim2=2).sum(dim=1)
    pairs = goals.shape[1] * (embeddings.shape[1] - 1)
    return (apart.sum(dim=(1, 2)) - same) / pairs


def coding_rate(embeddings: Tensor, weights: Tensor, distortion: float, ranks: Ranks) -> Tensor:
    """Half the log-determinant of I + d / distortion * covariance, averaged over views; the same on every rank.

    It is scaled by (d + N) / (d N), which balances it against the alignment for any batch size and width.

    Args:
        embeddings: fp32 [n, V, d] of this rank.
        weights: fp32 [n]; samples of weight 0 are ignored.
        distortion: the squared error up to which embeddings are coded (Ma et al. 2007).
        ranks: sums the covariances over all ranks, V x d x d values.
    """
    dim, of_views = embeddings.shape[-1], embeddings.transpose(0, 1)  # [V, n, d]
    moments = ranks.sum(of_views.transpose(1, 2) @ (of_views * weights[:, None]))  # [V, d, d]
    count = ranks.sum(weights.sum()).clamp(min=1)
    volume = torch.eye(dim, device=embeddings.device) + moments * (dim / (distortion * count))
    factor, _ = torch.linalg.cholesky_ex(volume)
    rate = factor.diagonal(dim1=1, dim2=2).log().sum(dim=1).mean()
    return rate * (dim + count) / (dim * count)
