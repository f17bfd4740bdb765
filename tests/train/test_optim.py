from __future__ import annotations

import copy

import pytest
import torch

from pipeline.config.training import OptimizerConfig
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.train.lamb import Lamb
from pipeline.train.muon import Muon
from pipeline.train.optim import build_optimizer, parameter_groups, peak_lr


@pytest.fixture(scope="module")
def model() -> MiniViT:
    spec = build_spec("nano", image_size=8, channels=1, num_classes=3, depth=2, registers=2, layer_scale=0.1)
    return MiniViT.from_spec(spec)


def test_the_rate_is_scaled_to_the_batch_only_if_asked() -> None:
    assert peak_lr(OptimizerConfig(lr=0.1), 4096) == 0.1
    assert peak_lr(OptimizerConfig(lr=1.5e-4, lr_batch_size=256), 4096) == pytest.approx(2.4e-3)  # MAE's recipe
    assert peak_lr(OptimizerConfig(name="lamb", lr=0.1, lr_batch_size=512), 2048) == pytest.approx(0.2)
    assert peak_lr(OptimizerConfig(name="sgd", lr=0.1, lr_batch_size=256), 64) == pytest.approx(0.025)


def test_every_parameter_is_in_one_group(model: MiniViT) -> None:
    groups = parameter_groups(model, OptimizerConfig(layer_decay=0.5))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_only_matrices_and_kernels_decay(model: MiniViT) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay: dict[float, set[str]] = {0.0: set(), 0.3: set()}
    for group in parameter_groups(model, OptimizerConfig(weight_decay=0.3)):
        by_decay[group["weight_decay"]] |= {names[id(parameter)] for parameter in group["params"]}
    assert {"cls_token", "pos_embed", "patch_embed.proj.bias"} <= by_decay[0.0]
    assert all("norm" not in name and not name.endswith("bias") for name in by_decay[0.3])
    assert any("register" in name for name in by_decay[0.0])
    assert {"patch_embed.proj.weight", "transformer.layers.0.linear1.weight"} <= by_decay[0.3]
    assert all(model.get_parameter(name).ndim >= 2 for name in by_decay[0.3])


def test_layer_decay_scales_by_depth(model: MiniViT) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {
        names[id(parameter)]: group["lr_scale"]
        for group in parameter_groups(model, OptimizerConfig(layer_decay=0.5))
        for parameter in group["params"]
    }
    assert scales["pos_embed"] == scales["patch_embed.proj.weight"] == 0.5**3
    assert scales["transformer.layers.0.linear1.weight"] == 0.5**2
    assert scales["transformer.layers.1.linear1.bias"] == 0.5
    heads = {scale for name, scale in scales.items() if name.startswith("mlp_head")}
    assert heads == {1.0}


def test_frozen_heads_do_not_move_the_rates_of_the_blocks(model: MiniViT) -> None:
    frozen = copy.deepcopy(model)
    frozen.mlp_head.requires_grad_(False)
    groups = parameter_groups(frozen, OptimizerConfig(layer_decay=0.5))
    assert {group["lr_scale"] for group in groups} == {0.5**3, 0.5**2, 0.5}


def test_without_layer_decay_there_are_two_groups(model: MiniViT) -> None:
    groups = parameter_groups(model, OptimizerConfig())
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}


def test_lamb_has_a_group_per_parameter(model: MiniViT) -> None:
    config = OptimizerConfig(name="lamb", layer_decay=0.5, weight_decay=0.3)
    groups = parameter_groups(model, config)
    assert len(groups) == len(list(model.parameters()))
    others = parameter_groups(model, OptimizerConfig(layer_decay=0.5, weight_decay=0.3))
    settings = {id(p): (g["weight_decay"], g["lr_scale"]) for g in others for p in g["params"]}
    assert all(settings[id(group["params"][0])] == (group["weight_decay"], group["lr_scale"]) for group in groups)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.9)}),
        ("lamb", Lamb, {"betas": (0.8, 0.9)}),
        ("muon", Muon, {"betas": (0.8, 0.9)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "nesterov": True}),
    ],
)
def test_settings_reach_the_optimiser(name: str, kind: type, expected: dict, model: MiniViT) -> None:
    config = OptimizerConfig(name=name, lr=0.2, betas=(0.8, 0.9), momentum=0.7)
    optimizer = build_optimizer(parameter_groups(model, config), config, 64, partitioned=False, precision="fp32")
    assert isinstance(optimizer, kind)
    assert all(group["lr"] == 0.2 and expected.items() <= group.items() for group in optimizer.param_groups)
