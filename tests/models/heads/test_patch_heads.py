"""Tests of all heads with outputs per patch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ModelError
from pipeline.models import MiniViT, count_parameters, forward_flops
from pipeline.models.heads import head_kind
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone

K = 5
KINDS = ["linear", "conv", "dpt", "heat_maps", "mask_transformer"]
HEADS = {
    "linear": HeadSpec("linear", K),
    "linear, two layers": HeadSpec("linear", K, {"layers": [0, 2]}),
    "linear, cells": HeadSpec("linear", K, {"cells": 3}),
    "conv": HeadSpec("conv", K),
    "conv, narrow, three layers": HeadSpec("conv", K, {"layers": [0, 1, 2], "hidden": 12, "cells": 2}),
    "dpt": HeadSpec("dpt", K, {"hidden": 12}),
    "dpt, two layers": HeadSpec("dpt", K, {"layers": [0, 2], "hidden": 7}),
    "heat_maps": HeadSpec("heat_maps", K),
    "heat_maps, two layers": HeadSpec("heat_maps", K, {"layers": [0, 2]}),
    "mask_transformer": HeadSpec("mask_transformer", K),
    "mask_transformer, one layer, two maps": HeadSpec("mask_transformer", K, {"layers": [1, 2], "depth": 1}),
}
Randomise = Callable[[nn.Module], None]


def spec_of(head: HeadSpec, **options: Any) -> ModelSpec:
    settings = {"image_size": (16, 24), "patch_size": 4, "depth": 3, "embed_dim": 32, "num_heads": 2}
    return ModelSpec(build_backbone("nano", **{**settings, **options}), {"seg_head": head}, "segmentation")


def model_of(head: HeadSpec, randomise: Randomise, **options: Any) -> MiniViT:
    model = MiniViT.from_spec(spec_of(head, **options))
    randomise(model)
    return model.eval()


def images(height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("options", [{}, {"registers": 2, "qk_norm": True, "layer_scale": 0.1}], ids=["plain", "more"])
def test_counts_are_those_of_the_module(head: HeadSpec, options: dict[str, Any]) -> None:
    spec = spec_of(head, **options)
    with torch.device("meta"):
        model = MiniViT.from_spec(spec, init="torch").eval()
        image = torch.empty(1, 3, *spec.backbone.image_size)
    assert count_parameters(spec) == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(image)
    assert forward_flops(spec) == counter.get_total_flops()


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_outputs_stand_on_the_grid_of_patches_at_any_size(head: HeadSpec, randomise: Randomise) -> None:
    model, cells = model_of(head, randomise), head.options.get("cells", 1)
    if head.kind == "dpt":
        cells = 2 ** (len(head.options.get("layers", range(3))) - 2)
    if head.kind == "heat_maps":
        cells = 4
    assert model(images()).shape == (2, K, 4 * cells, 6 * cells)
    assert model(images(32, 20)).shape == (2, K, 8 * cells, 5 * cells)
    assert model.bfloat16()(images().bfloat16()).isfinite().all()


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_every_parameter_learns(head: HeadSpec, randomise: Randomise) -> None:
    model = model_of(head, randomise, class_token=False)
    model(images()).square().mean().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_rows_of_the_class_tensors_are_the_classes(head: HeadSpec, randomise: Randomise) -> None:
    """Surgery keeps classes by name: with their rows in another order, outputs come in that order."""
    model = model_of(head, randomise)
    before, order = model(images()), torch.tensor([3, 0, 4, 1, 2])
    names = head_kind(head.kind).class_tensors(head)
    with torch.no_grad():
        for name in names:
            tensor = model.heads["seg_head"].get_parameter(name)
            assert tensor.shape[0] == K
            tensor.copy_(tensor[order].clone())
    torch.testing.assert_close(model(images()), before[:, order])
    others = [n for n, p in model.heads["seg_head"].named_parameters() if n not in names and p.shape[0] == K]
    assert others == []


def test_linear_is_a_norm_and_a_product_of_each_patch(randomise: Randomise) -> None:
    model = model_of(HEADS["linear, two layers"], randomise)
    head: Any = model.heads["seg_head"]
    maps = model.forward_intermediates(images(), [0, 2])  # [B, D, h, w] each
    normed = [norm(one.permute(0, 2, 3, 1)) for norm, one in zip(head.norms, maps, strict=True)]
    weight, bias = head.classes.weight.flatten(0, 1), head.classes.bias.flatten()
    expected = F.linear(torch.cat(normed, dim=-1), weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(images()), expected)


def test_cells_lie_in_their_patches(randomise: Randomise) -> None:
    """Cell (i, j) of patch (a, b) of class k is the product of that cell's row of the matrix with the patch's token."""
    model = model_of(HEADS["linear, cells"], randomise)
    head: Any = model.heads["seg_head"]
    (tokens,) = model.forward_intermediates(images(), [2])  # [B, D, h, w]
    found = model(images())
    for k, a, b, i, j in [(0, 0, 0, 0, 0), (4, 3, 5, 2, 2), (2, 1, 4, 0, 2), (1, 2, 3, 2, 1)]:
        token = head.norms[0](tokens[0, :, a, b])
        expected = token @ head.classes.weight[k, 3 * i + j] + head.classes.bias[k, 3 * i + j]
        torch.testing.assert_close(found[0, k, 3 * a + i, 3 * b + j], expected)


def test_conv_sees_the_neighbours_and_no_farther(randomise: Randomise) -> None:
    model = model_of(HEADS["conv"], randomise)
    head = model.heads["seg_head"]
    features = model.features(images(40, 40))
    tokens = features.layers[2].clone()
    tokens[:, features.num_prefix + 5 * 10 + 5] += torch.randn(32, generator=torch.Generator().manual_seed(1))
    moved = (head(features) != head(features._replace(layers={2: tokens}))).any(dim=1)[0]
    assert moved[4:7, 4:7].all()
    assert moved.sum() == 9


def test_dpt_reads_evenly_spaced_layers_and_sees_far_beyond_a_patch(randomise: Randomise) -> None:
    spec = spec_of(HEADS["dpt"], depth=12)
    assert spec.reads.layers == (2, 5, 8, 11)
    model = model_of(HEADS["dpt"], randomise, depth=4)
    head = model.heads["seg_head"]
    features = model.features(images(36, 20))  # 9 x 5 patches: sides that cannot be halved
    assert head(features).shape == (2, K, 36, 20)
    for layer in range(4):
        tokens = features.layers[layer].clone()
        tokens[:, features.num_prefix + 2 * 5 + 2] += 1 + torch.randn(32, generator=torch.Generator().manual_seed(1))
        layers = {**features.layers, layer: tokens}
        moved = (head(features) != head(features._replace(layers=layers))).any(dim=1)[0]
        assert moved[8:12, 8:12].all()
        assert moved[:3].any() == (layer > 0), "five convolutions of the finest map reach five cells"


def test_a_mask_transformer_answers_with_normalised_cosines(randomise: Randomise) -> None:
    model = model_of(HEADS["mask_transformer"], randomise)
    head: Any = model.heads["seg_head"]
    with torch.no_grad():
        head.mask_norm.weight.fill_(1)
        head.mask_norm.bias.zero_()
    logits = model(images())
    torch.testing.assert_close(logits.mean(dim=1), torch.zeros(2, 4, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.var(dim=1, unbiased=False), torch.ones(2, 4, 6), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["mae", "timm", "torch"])
def test_a_new_head_guesses(kind: str, init: str) -> None:
    """The first loss is about ln(K), and all weights are finite."""
    torch.manual_seed(0)
    model = MiniViT.from_spec(spec_of(HeadSpec(kind, K)), init=init)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    logits = model(images())
    loss = F.cross_entropy(logits, torch.randint(K, (2, *logits.shape[2:])))
    assert 0.5 < loss / torch.tensor(float(K)).log() < 1.6


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (HeadSpec("linear", K, {"layers": [1, 3]}), "found layer 3, but the model's layers are 0 to 2"),
        (HeadSpec("conv", K, {"layers": [-1]}), "found layer -1, but the model's layers are 0 to 2"),
        (HeadSpec("conv", K, {"layers": [1, 1, 2]}), "[1, 1, 2], expected distinct numbers in ascending order"),
        (HeadSpec("conv", K, {"layers": [2, 1]}), "[2, 1], expected distinct numbers in ascending order"),
        (HeadSpec("linear", K, {"layers": [0, 1]}), "leave out the last layer 2"),
        (HeadSpec("linear", K, {"hidden": 8}), "a linear head has no option 'hidden'; allowed: layers, cells"),
        (HeadSpec("conv", K, {"hidden": 0}), "hidden of a conv head is 0, but must be at least 1"),
        (HeadSpec("mask_transformer", K, {"hidden": 8}), "no option 'hidden'; allowed: layers, depth"),
        (HeadSpec("dpt", K, {"layers": [2]}), "a dpt head fuses 2 to 4 layers, found 1"),
        (HeadSpec("dpt", K, {"cells": 2}), "no option 'cells'; allowed: layers, hidden"),
        (HeadSpec("mask_transformer", K, {"quantities": True}), "compares classes and cannot predict quantities"),
        (HeadSpec("linear", 0), "a linear head has 0 outputs, but needs at least 1"),
    ],
)
def test_impossible_heads_are_refused_in_a_sentence(head: HeadSpec, said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)):
        spec_of(head)
