from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.probe.linear import best_l2, classes_of, fit, loss_and_gradient, num_right, standardiser
from pipeline.probe.rows import Rows

pytestmark = pytest.mark.usefixtures("one_rank")


def standardised(rows: Rows, by: Rows) -> Rows:
    return Rows(standardiser(by.features)(rows.features), rows.labels)


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_the_solution_of_scikit_learn(train: Rows, test: Rows, l2: float) -> None:
    weights = fit(standardised(train, train), 4, l2, 500)
    scaler = StandardScaler().fit(train.features.double().numpy())
    peer = LogisticRegression(C=1 / (l2 * len(train.labels)), tol=1e-10, max_iter=10_000)
    peer.fit(scaler.transform(train.features.double().numpy()), train.labels.numpy())
    # Softmax does not feel what all classes have in common; only the penalised weights fix it.
    ours = weights.numpy() - weights.numpy().mean(axis=1, keepdims=True)
    np.testing.assert_allclose(ours[:-1].T, peer.coef_ - peer.coef_.mean(axis=0), atol=1e-3)
    theirs = peer.score(scaler.transform(test.features.double().numpy()), test.labels.numpy())
    assert num_right(standardised(test, train), weights) == round(theirs * len(test.labels))


def test_the_gradient_is_that_of_the_objective(train: Rows) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    x, total, l2 = train.features.double(), len(train.labels), 0.3
    leaf = weights.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ leaf[:-1] + leaf[-1], train.labels) + l2 / 2 * leaf[:-1].square().sum()
    loss.backward()
    ours, gradient = loss_and_gradient(train, weights, total, l2)
    assert float(ours) == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-12)


def test_a_good_start_comes_to_the_same_end(train: Rows) -> None:
    rows = standardised(train, train)
    looks: list[int] = []
    cold = fit(rows, 4, 1e-3, 500, beat=lambda: looks.append(0))
    warm = fit(rows, 4, 1e-3, 500, cold, beat=lambda: looks.append(1))
    assert looks.count(1) < looks.count(0)
    assert classes_of(rows.features, warm).equal(classes_of(rows.features, cold))


def test_blocks_change_nothing(train: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = standardised(train, train)
    whole = fit(rows, 4, 1e-2, 100)
    monkeypatch.setattr("pipeline.probe.linear.CELLS_AT_ONCE", 2000)
    torch.testing.assert_close(standardised(train, train).features, rows.features)
    torch.testing.assert_close(fit(rows, 4, 1e-2, 100), whole, rtol=1e-6, atol=1e-8)


def test_a_feature_that_never_varies_becomes_zero() -> None:
    features = torch.randn(50, 3) * torch.tensor([1.0, 0.0, 100.0]) + torch.tensor([5.0, 0.7, -3.0])
    found = standardiser(features)(features)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(dim=0, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-4, rtol=0)


def test_of_equally_good_l2_the_strongest() -> None:
    assert best_l2({1e-4: 9, 1e-2: 9, 1e-1: 8}) == 1e-2
