"""Frozen layers: what they are, what they keep, and that they run as in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.training import OptimizerConfig
from pipeline.models import MiniViT
from pipeline.models.costs import frozen_layers, frozen_parameters
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone
from pipeline.train.optim import parameter_groups

OPTIONS = {"registers": 1, "mask_token": True, "layer_scale": 0.1, "qk_norm": True, "embed_norm": True}
Randomise = Callable[[nn.Module], None]


def spec_of(**options: Any) -> ModelSpec:
    settings = {"image_size": 16, "patch_size": 4, "depth": 4, "embed_dim": 32, "num_heads": 2}
    return ModelSpec(build_backbone("nano", **settings, **options), {"head": HeadSpec("linear", 3, {"layers": [1, 3]})})


def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("share", "layers"), [(0.1, 0), (0.25, 1), (0.5, 2), (0.62, 2), (0.63, 3), (1.0, 4)])
def test_a_share_of_the_layers_with_the_embedding(share: float, layers: int) -> None:
    model = MiniViT.from_spec(spec_of(**OPTIONS))
    model.freeze(share)
    assert frozen_layers(model.spec.backbone, share) == layers
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = [name for name, _ in model.named_parameters() if not name.startswith(("head", "transformer"))]
    expected += [
        name for name, _ in model.named_parameters() if name.startswith("tra") and model.layer_of(name) <= layers
    ]
    assert frozen == set(expected)
    assert frozen_parameters(model.spec.backbone, share) == sum(model.get_parameter(name).numel() for name in frozen)


def test_a_share_of_0_freezes_nothing() -> None:
    model = MiniViT.from_spec(spec_of())
    model.freeze(0.0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert frozen_parameters(model.spec.backbone, 0.0) == 0


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_frozen_layers_keep_nothing_and_the_others_learn_as_before(
    recompute: str, randomise: Randomise, kept_bytes: Callable[..., int]
) -> None:
    whole, half, heads = (MiniViT.from_spec(spec_of()) for _ in range(3))
    kept = []
    for model, share in ((whole, 0.0), (half, 0.5), (heads, 1.0)):
        randomise(model)
        model.freeze(share)
        model.transformer.recompute_activations(recompute)
        kept.append(kept_bytes(model, lambda model=model: model(images())))
        model(images()).square().mean().backward()
    of_heads = 2 * 2 * 3 * 17 * 32 * 4 + 3 * 16 * 2 * 32 * 4  # norms of two maps, and what is linear in both
    assert kept[2] <= of_heads < kept[1] < kept[0]
    for model in (half, heads):
        assert torch.equal(model(images()), whole(images()))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad)
            else:
                assert parameter.grad is None


def test_frozen_layers_run_as_in_evaluation(randomise: Randomise) -> None:
    model = MiniViT.from_spec(spec_of(dropout=0.3, drop_path=0.5))
    randomise(model)
    model.freeze(0.5)
    expected = list(model.eval().transformer.layer_outputs(model.embed(images())))
    found = list(model.train().transformer.layer_outputs(model.embed(images())))
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other) == (number < 2)


def test_what_is_frozen_is_in_no_group() -> None:
    model = MiniViT.from_spec(spec_of())
    model.freeze(0.5)
    groups = parameter_groups(model, OptimizerConfig(layer_decay=0.5))
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert sorted({group["lr_scale"] for group in groups}) == [0.25, 0.5, 1.0], "as far from the heads as before"
