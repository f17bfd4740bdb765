"""Parameter groups and optimisers."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from pipeline.config.training import OptimizerConfig
from pipeline.train.lamb import Lamb


class Layered(Protocol):
    """A model that knows the layer of each parameter and whether it decays."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, starting from 0 at the input."""

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to it."""


def parameter_groups(model: Layered, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of parameters that share weight decay and learning-rate scale; for LAMB, one per parameter.

    With `layer_decay` d, a layer's rate is scaled by d to the power of the number of layers above it (layer-wise decay
    as in BEiT, Bao et al. 2021).
    """
    layers = {name: model.layer_of(name) if config.layer_decay else 0 for name, _ in model.named_parameters()}
    groups: dict[tuple[int, bool, str], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[layers[name], model.decays(name), name if config.name == "lamb" else ""].append(parameter)
    last, decay = max(layers.values()), config.layer_decay or 1.0
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": decay ** (last - layer),
        }
        for (layer, decays, _), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def peak_lr(config: OptimizerConfig, global_batch_size: int) -> float:
    """The highest learning rate: `lr`, scaled from `lr_batch_size` to the global batch size if that is set.

    Scales linearly with the batch size (Goyal et al. 2017), as AdamW recipes also do (DeiT, MAE); for LAMB with its
    square root (You et al. 2020).
    """
    if config.lr_batch_size is None:
        return config.lr
    growth = global_batch_size / config.lr_batch_size
    return config.lr * (math.sqrt(growth) if config.name == "lamb" else growth)


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the wrappers that exclude its methods from compilation.

    These wrappers import the compiler, which takes two seconds of each start.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, global_batch_size: int, *, partitioned: bool
) -> torch.optim.Optimizer:
    """The optimiser of a stage, fused if torch supports it: one kernel per flat ZeRO partition.

    `partitioned` says whether ZeRO partitions the optimised tensors over the ranks.
    """
    lr = peak_lr(config, global_batch_size)
    if config.name == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if config.name == "lamb":
        return Lamb(groups, lr=lr, betas=config.betas, partitioned=partitioned)
    return AdamW(groups, lr=lr, betas=config.betas, fused=True)
