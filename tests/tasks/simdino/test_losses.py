from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.tasks.ranks import ALONE
from pipeline.tasks.simdino.losses import coding_rate, misalignment


def test_pairs_are_all_but_those_of_the_same_view() -> None:
    embeddings, goals = (F.normalize(torch.randn(4, views, 5), dim=-1) for views in (4, 2))
    found = misalignment(embeddings, goals)
    pairs = [(s, t) for s in range(4) for t in range(2) if s != t]
    expected = sum((embeddings[:, s] - goals[:, t]).square().sum(dim=1) / 2 for s, t in pairs) / len(pairs)
    torch.testing.assert_close(found, expected)


def test_coding_rate_is_half_the_log_determinant() -> None:
    embeddings, weights = F.normalize(torch.randn(12, 2, 6), dim=-1), torch.ones(12)
    expected = torch.stack(
        [
            0.5 * torch.logdet(torch.eye(6) + 6 / (12 * 0.5) * view.T @ view) * (6 + 12) / (6 * 12)
            for view in embeddings.unbind(dim=1)
        ]
    ).mean()
    torch.testing.assert_close(coding_rate(embeddings, weights, 0.5, ALONE), expected)


def test_coding_rate_grows_with_the_directions_that_are_used() -> None:
    weights = torch.ones(64)
    rates = [
        float(coding_rate(F.normalize(torch.randn(64, 1, used), dim=-1) @ torch.eye(8)[:used], weights, 0.5, ALONE))
        for used in (1, 2, 4, 8)
    ]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.5 * torch.tensor(17.0).log().item() * 72 / 512, rel=1e-4)


def test_samples_of_weight_0_fill_no_space() -> None:
    embeddings = F.normalize(torch.randn(9, 2, 4), dim=-1).requires_grad_()
    weights = torch.ones(9).index_fill(0, torch.tensor([0, 7]), 0.0)
    some = coding_rate(embeddings, weights, 0.5, ALONE)
    torch.testing.assert_close(some, coding_rate(embeddings[weights > 0], torch.ones(7), 0.5, ALONE))
    (gradient,) = torch.autograd.grad(some, embeddings)
    assert not gradient[weights == 0].any()
