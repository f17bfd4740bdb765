from __future__ import annotations

import copy

import timm.optim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.config.training import OptimizerConfig
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.train.lamb import Lamb
from pipeline.train.optim import parameter_groups


def model() -> MiniViT:
    torch.manual_seed(0)
    spec = build_spec("nano", image_size=8, channels=1, num_classes=3, depth=1, embed_dim=16)
    return MiniViT.from_spec(spec).double()  # Adam's first steps hang on the signs of tiny gradients


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, torch.Tensor]:
    for step in range(steps):
        images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()
    return {name: value.detach() for name, value in network.named_parameters()}


@settings(max_examples=5)
@given(st.floats(1e-4, 0.1), st.sampled_from([0.0, 0.02, 0.3]), st.sampled_from([(0.9, 0.999), (0.8, 0.95)]))
def test_equals_timms_lamb(lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
    """Timm's clips the global gradient norm by default, which the engine does here."""
    config = OptimizerConfig(name="lamb", lr=lr, weight_decay=weight_decay, betas=betas)
    ours, theirs = model(), model()
    found = train(ours, Lamb(parameter_groups(ours, config), lr=lr, betas=betas), steps=3)
    stock = timm.optim.Lamb(parameter_groups(theirs, config), lr=lr, betas=betas, eps=1e-6, max_grad_norm=None)
    torch.testing.assert_close(found, train(theirs, stock, steps=3), atol=1e-6, rtol=1e-5)


def test_a_step_is_as_long_as_its_tensor() -> None:
    tensor = nn.Parameter(torch.randn(5, 3))
    before = tensor.detach().clone()
    optimizer = Lamb([{"params": [tensor], "weight_decay": 0.01}], lr=0.1)
    tensor.grad = torch.randn(5, 3)
    optimizer.step()
    torch.testing.assert_close((tensor.detach() - before).norm(), 0.1 * before.norm())


def test_a_tensor_of_zeros_moves_nevertheless() -> None:
    tensor = nn.Parameter(torch.zeros(4))
    optimizer = Lamb([{"params": [tensor], "weight_decay": 0.01}], lr=0.1)
    tensor.grad = torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(tensor.detach(), torch.full((4,), -0.1), atol=1e-5, rtol=0)


def test_state_survives_saving() -> None:
    config = OptimizerConfig(name="lamb")
    first = model()
    optimizer = Lamb(parameter_groups(first, config), lr=0.1)
    train(first, optimizer, steps=2)
    second = model()
    second.load_state_dict(first.state_dict())
    loaded = Lamb(parameter_groups(second, config), lr=0.1)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(train(second, loaded, steps=1), train(first, optimizer, steps=1))
