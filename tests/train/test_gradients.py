"""One block of gradients against DeepSpeed's hook per parameter, in the engine that uses either."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.config.training import EngineConfig
from pipeline.train import engine as engine_module
from pipeline.train.engine import Engine
from pipeline.train.gradients import GradientBlock

pytestmark = pytest.mark.usefixtures("one_rank")
KINDS = [(zero, precision) for zero, precision in product((1, 2), ("fp32", "bf16")) if (zero, precision) != (1, "bf16")]


@pytest.fixture(autouse=True)
def rank_of_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)


class Model(nn.Module):
    """Two groups of parameters of odd sizes, one of which gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.unused = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(inputs)))

    def groups(self) -> list[dict[str, Any]]:
        weights = [weight for weight in self.parameters() if weight.ndim > 1]
        return [{"params": weights}, {"params": [bias for bias in self.parameters() if bias.ndim == 1]}]


def built(zero: int, precision: str, clip_grad_norm: float = 0.0) -> Engine:
    model = Model()
    optimizer = torch.optim.AdamW(model.groups(), lr=0.1)
    config = EngineConfig.model_construct(zero_stage=zero, precision=precision)
    return Engine(model, optimizer, config, clip_grad_norm=clip_grad_norm)


def trained(engine: Engine, steps: int = 3, micro_batches: int = 2) -> list[Tensor]:
    """The master weights and the norms of a few steps."""
    generator = torch.Generator().manual_seed(1)
    norms = []
    for _ in range(steps):
        for _ in range(micro_batches):
            inputs = torch.randn(4, 5, generator=generator).to(next(engine.module.parameters()).dtype)
            engine.backward(engine(inputs).float().square().sum())
        assert engine.step()
        norms.append(engine.grad_norm())
    return [*(flat.weights.clone() for flat in engine.flats), torch.tensor(norms)]


@pytest.mark.parametrize(("zero", "precision"), KINDS)
@pytest.mark.parametrize("clip_grad_norm", [0.0, 0.5])
def test_steps_equal_those_of_deepspeeds_hooks(
    zero: int, precision: str, clip_grad_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = built(zero, precision, clip_grad_norm)
    assert isinstance(ours._gradients, GradientBlock)
    monkeypatch.setattr(engine_module, "LARGEST_BUCKET", 10)  # fewer than the model's parameters
    hooks = built(zero, precision, clip_grad_norm)
    assert hooks._gradients is None
    for one, other in zip(trained(ours), trained(hooks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_step_exchanges_nothing_on_a_single_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a norm: every rank has all averaged gradients."""
    engine, exchanged = built(2, "fp32", clip_grad_norm=0.5), []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: exchanged.append(tensor))
    trained(engine, steps=1, micro_batches=3)
    assert not exchanged


def test_a_gradient_that_is_not_finite_skips_the_step_and_is_forgotten() -> None:
    engine = built(2, "bf16")
    before = [flat.weights.clone() for flat in engine.flats]
    engine.backward(engine(torch.full((1, 5), float("inf"), dtype=torch.bfloat16)).float().sum())
    assert not engine.step()
    assert all(torch.equal(flat.weights, weights) for flat, weights in zip(engine.flats, before, strict=True))
    trained(engine, steps=1)
    assert all(flat.weights.isfinite().all() for flat in engine.flats)


def test_gradients_of_micro_batches_add_up_in_fp32() -> None:
    """In bf16, 300 ones would add up to 256."""
    engine = built(2, "bf16")
    assert engine._gradients
    for _ in range(300):
        engine.backward(engine(torch.zeros(1, 5, dtype=torch.bfloat16)).float().sum())
    assert engine._gradients._block.max() == 300
