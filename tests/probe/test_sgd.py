from __future__ import annotations

import math

import pytest
import torch

from pipeline.config.probe import LinearConfig
from pipeline.probe.linear import fit, num_right, standardiser
from pipeline.probe.rows import Rows
from pipeline.probe.sgd import batches, best_rate, fit_sgd

pytestmark = pytest.mark.usefixtures("one_rank")


def standardised(rows: Rows, by: Rows) -> Rows:
    return Rows(standardiser(by.features)(rows.features), rows.labels)


def test_as_torch_trains_a_layer_on_the_same_batches(train: Rows) -> None:
    rows, rate, epochs, size = standardised(train, train), 0.1, 3, 64
    layer = torch.nn.Linear(rows.features.shape[1], 4, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    steps = epochs * (len(rows.labels) // size)
    for step, mine in enumerate(batches(rows, len(rows.labels), size, epochs)):
        optimizer.param_groups[0]["lr"] = rate * size / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(rows.features[mine].double()), rows.labels[mine]).backward()
        optimizer.step()
    assert step == steps - 1
    found = fit_sgd(rows, 4, [1e-3, rate], epochs=epochs, batch_size=size)[1]
    torch.testing.assert_close(found[:-1].T, layer.weight.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[-1], layer.bias.detach(), rtol=1e-9, atol=1e-12)


def test_an_epoch_sees_each_sample_once_in_an_order_of_its_own(train: Rows) -> None:
    epochs = torch.stack(list(batches(train, 400, 80, 2))).view(2, 400)
    for epoch in epochs:
        assert epoch.sort().values.equal(torch.arange(400))
    assert not epochs[0].equal(epochs[1])


def test_it_comes_near_the_converged_solution(train: Rows, test: Rows) -> None:
    rows, judged = standardised(train, train), standardised(test, train)
    converged = num_right(judged, fit(rows, 4, 1e-2, 200))
    by_sgd = [num_right(judged, weights) for weights in fit_sgd(rows, 4, [1e-3, 0.1], epochs=50, batch_size=64)]
    assert max(by_sgd) > 0.95 * converged


def test_of_equally_good_rates_the_smallest() -> None:
    assert best_rate({0.3: 9, 0.1: 9, 0.01: 8}) == 0.1


def test_settings_of_the_other_optimizer_are_refused() -> None:
    with pytest.raises(ValueError, match="l2: not a setting of optimizer: sgd; leave it out, or use lbfgs"):
        LinearConfig(optimizer="sgd", l2=[0.1])
    with pytest.raises(ValueError, match="epochs: not a setting of optimizer: lbfgs; leave it out, or use sgd"):
        LinearConfig(epochs=5)
    written_out = LinearConfig(optimizer="sgd", epochs=5).model_dump()
    assert LinearConfig(**written_out).epochs == 5
