"""Small models with random values everywhere, even where parameters start at zero, so that no error is hidden."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.models import MiniViT, ModelSpec, build_spec


@pytest.fixture
def randomise() -> Callable[[nn.Module], None]:
    """Fills every parameter with normal(0.1), the same on every call."""

    def fill(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)

    return fill


@pytest.fixture
def small_spec() -> Callable[..., ModelSpec]:
    """By default `nano`, two layers deep, at 16 px with patches of 4."""

    def make(**options: object) -> ModelSpec:
        settings = {"image_size": 16, "patch_size": 4, "num_classes": 5, "depth": 2, "embed_dim": 32, "num_heads": 2}
        return build_spec("nano", **{**settings, **options})

    return make


@pytest.fixture
def kept_bytes() -> Callable[[nn.Module, Callable[[], object]], int]:
    """Measures the bytes that wait for the backward pass after a call, besides the weights of a module."""

    def measure(module: nn.Module, call: Callable[[], object]) -> int:
        weights = {parameter.data_ptr() for parameter in module.parameters()}
        kept: dict[int, int] = {}
        alive: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if tensor.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
        return sum(kept.values())

    return measure


@pytest.fixture
def small_model(small_spec: Callable[..., ModelSpec], randomise: Callable[[nn.Module], None]) -> Callable[..., MiniViT]:
    """A randomised model of `small_spec`, in eval mode."""

    def make(spec: ModelSpec | None = None, **options: object) -> MiniViT:
        model = MiniViT.from_spec(spec or small_spec(**options))
        randomise(model)
        return model.eval()

    return make
