from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.models import Bundle, MiniViT, Preprocess, build_spec


@pytest.fixture
def make_bundle() -> Callable[..., Bundle]:
    """A bundle of a two-layer `nano` with random weights at 28 px, one channel."""

    def make(image_size: int = 28, **options: object) -> Bundle:
        spec = build_spec("nano", image_size=28, num_classes=3, channels=1, depth=2, **options)
        model = MiniViT.from_spec(spec, init="torch")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        preprocess = Preprocess((0.3,), (0.35,), 1, (image_size, image_size))
        return Bundle(model.state_dict(), spec, preprocess, ["ant", "bee", "cat"], {"run": "x"})

    return make


@pytest.fixture
def model_of() -> Callable[[Bundle], MiniViT]:
    def make(bundle: Bundle) -> MiniViT:
        model = MiniViT.from_spec(bundle.spec, init="torch").eval()
        model.load_state_dict(bundle.state)
        return model

    return make
