"""Small models with random values everywhere, zero-initialised parameters included, so that nothing hides behind a 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.models import MiniViT, ViTSpec, build_spec


def randomise(model: nn.Module, seed: int = 0, std: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


@pytest.fixture
def small_spec() -> Callable[..., ViTSpec]:
    """`nano`, two layers deep, at 16 px with patches of 4, unless told otherwise."""

    def make(**options: object) -> ViTSpec:
        settings = {"image_size": 16, "patch_size": 4, "num_classes": 5, "depth": 2, "embed_dim": 32, "num_heads": 2}
        return build_spec("nano", **{**settings, **options})

    return make


@pytest.fixture
def small_model(small_spec: Callable[..., ViTSpec]) -> Callable[..., MiniViT]:
    """A randomised model of `small_spec`, in eval mode."""

    def make(spec: ViTSpec | None = None, **options: object) -> MiniViT:
        model = MiniViT.from_spec(spec or small_spec(**options))
        randomise(model)
        return model.eval()

    return make
