"""Sketched isotropic Gaussian regularisation (Balestriero & LeCun 2025, section 4).

How far embeddings are from a standard normal: seen in random directions, by the statistic of Epps & Pulley (1983),
which compares characteristic functions.

Legend: n samples of a rank, N of the global batch, V views, d width of the embeddings, M directions, K knots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pipeline.tasks.ranks import Ranks

KNOTS, REACH = 17, 3.0  # of the quadrature, from 0 to 3: both functions are even or odd
STEP = REACH / (KNOTS - 1)
AT = tuple(STEP * knot for knot in range(1, KNOTS))  # at 0 characteristic functions agree


def directions(seed: int, dim: int, count: int) -> Tensor:
    """Unit vectors fp32 [d, M] that depend on the seed alone, on the CPU."""
    drawn = torch.randn(dim, count, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=0)


def sigreg(embeddings: Tensor, weights: Tensor, along: Tensor, ranks: Ranks) -> Tensor:
    """The statistic of the global batch, its mean over views and directions; every rank has the same.

    Args:
        embeddings: fp32 [n, V, d] of this rank.
        weights: fp32 [n]; samples of weight 0 do not count.
        along: directions [d, M].
        ranks: over which the sums of the characteristic functions are added up, K x V x M values.
    """
    projections = embeddings @ along.to(embeddings.device, non_blocking=True)  # [n, V, M]
    sums: Tensor = CharacteristicSums.apply(projections, weights)
    count = ranks.sum(weights.sum()).clamp(min=1)
    real, imaginary = (ranks.sum(sums) / count).unbind(dim=1)  # [K-1, V, M]
    knots = torch.arange(1, KNOTS, device=sums.device)[:, None, None] * STEP
    normal = torch.exp(-knots.square() / 2)
    errors = ((real - normal).square() + imaginary.square()) * normal  # weighted by the normal's own
    integral = 2 * STEP * (errors.sum(dim=0) - errors[-1] / 2)  # trapezoids, on both sides of 0
    return count * integral.mean()


class CharacteristicSums(Function):
    """Sums over samples of cos(t x) and sin(t x) at all knots t but the first.

    Projections fp32 [n, V, M] and weights [n] -> [K-1, 2, V, M]. The backward pass computes the functions again: what
    autograd would keep of them is 2 K times the projections.
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
