from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.tasks.lejepa.sigreg import AT, CharacteristicSums, directions, sigreg
from pipeline.tasks.ranks import ALONE


def statistic(embeddings: Tensor, weights: Tensor | None = None) -> Tensor:
    weights = torch.ones(len(embeddings)) if weights is None else weights
    return sigreg(embeddings, weights, directions(1, embeddings.shape[-1], 64), ALONE)


def written_out(embeddings: Tensor) -> float:
    """By the definition: the integral over the real line of the squared distance, weighted by the normal density's."""
    along = directions(1, embeddings.shape[-1], 64)
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    normal = torch.exp(-t.square() / 2)
    found = []
    for view in embeddings.unbind(dim=1):
        angles = (view @ along).double()[..., None] * t
        empirical = torch.exp(1j * angles).mean(dim=0)
        found.append(torch.trapezoid((empirical - normal).abs().square() * normal, t, dim=1).mean() * len(view))
    return float(torch.stack(found).mean())


def test_is_the_integral_of_the_paper() -> None:
    embeddings = torch.randn(50, 3, 8, generator=torch.Generator().manual_seed(0)) * 1.7 + 0.3
    assert float(statistic(embeddings)) == pytest.approx(written_out(embeddings), rel=1e-4)


def test_tells_a_standard_normal_from_others() -> None:
    """Of a standard normal its expectation does not grow with the batch; a collapsed batch's does."""
    normal = torch.randn(500, 60, 8, generator=torch.Generator().manual_seed(0))
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)  # integral of (1 - normal^2) normal, all of the line
    assert float(statistic(normal)) == pytest.approx(expected, rel=0.1)
    for other in (normal * 0.3, normal + 1, torch.zeros_like(normal), normal.clamp(-0.5, 0.5)):
        assert statistic(other) > 10 * statistic(normal)


def test_gradients_are_those_of_the_functions() -> None:
    projections = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    assert CharacteristicSums.apply(projections, weights).shape == (len(AT), 2, 2, 3)
    assert torch.autograd.gradcheck(lambda x: CharacteristicSums.apply(x, weights), [projections])


def test_samples_of_weight_0_count_nowhere() -> None:
    embeddings = torch.randn(9, 2, 4, requires_grad=True)
    weights = torch.ones(9).index_fill(0, torch.tensor([2, 5]), 0.0)
    some = statistic(embeddings, weights)
    torch.testing.assert_close(some, statistic(embeddings[weights > 0]))
    some.backward()
    assert embeddings.grad is not None
    assert not embeddings.grad[weights == 0].any()


def test_directions_are_unit_vectors_of_the_seed() -> None:
    first = directions(2**64 - 1, 16, 256)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(256))
    assert torch.equal(first, directions(2**64 - 1, 16, 256))
    assert not torch.equal(first, directions(7, 16, 256))
