"""Sketched isotropic Gaussian regularisation (Balestriero & LeCun 2025, section 4).

Measures how far embeddings are from a standard normal distribution, along random directions, with the statistic of
Epps & Pulley (1983), which compares characteristic functions.

Legend: n samples of a rank, N of the global batch, V views, d embedding width, M directions, K knots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline.tasks.ranks import Ranks

KNOTS, REACH = 17, 3.0  # of the quadrature, only from 0 to 3 as the functions are even or odd
STEP = REACH / (KNOTS - 1)
AT = tuple(STEP * knot for knot in range(1, KNOTS))  # all characteristic functions agree at 0


def directions(seed: int, dim: int, count: int) -> Tensor:
    """Unit vectors fp32 [d, M] on the CPU that depend only on the seed."""
    drawn = torch.randn(dim, count, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=0)


def sigreg(embeddings: Tensor, weights: Tensor, along: Tensor, ranks: Ranks) -> Tensor:
    """The statistic of the global batch, averaged over views and directions; the same on every rank.

    Args:
        embeddings: fp32 [n, V, d] of this rank.
        weights: fp32 [n]; samples of weight 0 are ignored.
        along: directions [d, M].
        ranks: sums the characteristic functions over all ranks, K x V x M values.
    """
    projections = embeddings @ along.to(embeddings.device, non_blocking=True)  # [n, V, M]
    sums: Tensor = CharacteristicSums.apply(projections, weights)
    count = ranks.sum(weights.sum()).clamp(min=1)
    real, imaginary = (ranks.sum(sums) / count).unbind(dim=1)  # [K-1, V, M]
    knots = torch.arange(1, KNOTS, device=sums.device)[:, None, None] * STEP
    normal = torch.exp(-knots.square() / 2)
    errors = ((real - normal).square() + imaginary.square()) * normal  # weighted by the normal's function
    integral = 2 * STEP * (errors.sum(dim=0) - errors[-1] / 2)  # trapezoidal rule, on both sides of 0
    return count * integral.mean()


class CharacteristicSums(Function):
    """Sums over samples of cos(t x) and sin(t x) at all knots t except the first.

    Projections fp32 [n, V, M] and weights [n] -> [K-1, 2, V, M]. The backward pass recomputes the functions, because
    autograd would store 2 K times the size of the projections.
    """

    @staticmethod
    def forward(ctx: Any, projections: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(projections, weights)
        flat = projections.flatten(1)
        sums = [torch.stack([weights @ (t * flat).cos_(), weights @ (t * flat).sin_()]) for t in AT]
        return torch.stack(sums).unflatten(2, projections.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        projections, weights = ctx.saved_tensors
        flat = projections.flatten(1)
        total = torch.zeros_like(flat)
        for t, (of_cos, of_sin) in zip(AT, gradient.flatten(2), strict=True):
            angles = t * flat
            total.addcmul_(angles.cos(), t * of_sin).addcmul_(angles.sin_(), t * of_cos, value=-1)
        return total.mul_(weights[:, None]).view_as(projections), None
