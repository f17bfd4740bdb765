"""Parameter groups and optimisers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from pipeline.config.training import OptimizerConfig
from pipeline.models.encoder import EncoderLayer
from pipeline.train.adamw import AdamW
from pipeline.train.device import precision_dtype
from pipeline.train.lamb import Lamb
from pipeline.train.muon import Muon


class Layered(Protocol):
    """A model that knows the layer of each parameter and whether it decays."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, starting from 0 at the input."""

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to it."""


def parameter_groups(model: Layered, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of parameters that share weight decay and learning-rate scale; for LAMB, one per parameter.

    For Muon, each parameter that holds matrices of a transformer layer has its own group, with their shape as
    `matrices`. With `layer_decay` d, a layer's rate is scaled by d to the power of the number of layers above it
    (layer-wise decay as in BEiT, Bao et al. 2021).
    """
    layers = {name: model.layer_of(name) if config.layer_decay else 0 for name, _ in model.named_parameters()}
    matrices = matrix_shapes(model) if config.name == "muon" else {}
    groups: dict[tuple[int, bool, str], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            alone = config.name == "lamb" or parameter in matrices
            groups[layers[name], model.decays(name), name if alone else ""].append(parameter)
    last, decay = max(layers.values()), config.layer_decay or 1.0
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": decay ** (last - layer),
        }
        | ({"matrices": matrices[parameters[0]]} if parameters[0] in matrices else {})
        for (layer, decays, _), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def matrix_shapes(model: Layered) -> dict[nn.Parameter, tuple[int, int, int]]:
    """[number, rows, columns] of the matrices in transformer layers; those of query, key and value are stacked."""
    shapes = {}
    for layer in model.modules():
        if isinstance(layer, EncoderLayer):
            for name, parameter in layer.named_parameters():
                if parameter.ndim == 2:
                    number = 3 if name.endswith("in_proj_weight") else 1
                    shapes[parameter] = (number, len(parameter) // number, parameter.shape[1])
    return shapes


def peak_lr(config: OptimizerConfig, global_batch_size: int) -> float:
    """The highest learning rate: `lr`, scaled from `lr_batch_size` to the global batch size if that is set.

    Scales linearly with the batch size (Goyal et al. 2017), as AdamW recipes also do (DeiT, MAE); for LAMB with its
    square root (You et al. 2020).
    """
    if config.lr_batch_size is None:
        return config.lr
    growth = global_batch_size / config.lr_batch_size
    return config.lr * (math.sqrt(growth) if config.name == "lamb" else growth)


def build_optimizer(
    groups: list[dict[str, Any]],
    config: OptimizerConfig,
    global_batch_size: int,
    *,
    partitioned: bool,
    precision: str,
) -> torch.optim.Optimizer:
    """The optimiser of a stage, fused if torch supports it: one kernel per flat ZeRO partition.

    `partitioned` says whether ZeRO partitions the optimised tensors over the ranks. `precision` is what Muon
    orthogonalises in.
    """
    lr = peak_lr(config, global_batch_size)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    if config.name == "lamb":
        return Lamb(groups, lr=lr, betas=config.betas, partitioned=partitioned)
    if config.name == "muon":
        dtype = precision_dtype(precision)
        return Muon(groups, lr, config.betas, config.momentum, partitioned=partitioned, dtype=dtype)
    return AdamW(groups, lr=lr, betas=config.betas, fused=True)
