"""Parameter groups, optimisers and learning-rate schedules."""

from __future__ import annotations

import inspect
import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from pipeline.config.training import OptimizerConfig
from pipeline.train.lamb import Lamb

BLOCK = re.compile(r"transformer\.layers\.(\d+)\.")


def layer_of(name: str, depth: int) -> int:
    """Depth of a parameter for layer-wise decay: 0 for the embeddings, 1..depth for blocks, depth + 1 for the head."""
    if match := BLOCK.match(name):
        return int(match.group(1)) + 1
    return depth + 1 if name.startswith(("mlp_head", "transformer.norm")) else 0


def parameter_groups(model: nn.Module, config: OptimizerConfig, depth: int) -> list[dict[str, Any]]:
    """Groups of parameters that share weight decay and learning-rate scale; for LAMB, one per parameter.

    Matrices and patch kernels decay; biases, norms, positions and tokens do not. With `layer_decay` d, a layer's rate
    is scaled by d ** (depth + 1 - layer) (layer-wise decay as in BEiT, Bao et al. 2021).
    """
    groups: dict[tuple[int, bool, str], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and not name.endswith(("_token", "pos_embed", "registers"))
            layer = layer_of(name, depth) if config.layer_decay else 0
            groups[layer, decays, name if config.name == "lamb" else ""].append(parameter)
    decay = config.layer_decay or 1.0
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": decay ** (depth + 1 - layer) if config.layer_decay else 1.0,
        }
        for (layer, decays, _), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def peak_lr(config: OptimizerConfig, global_batch_size: int) -> float:
    """The highest learning rate: `lr`, scaled from the batch it is meant for to the one it is used with, if asked.

    In proportion to the batch (Goyal et al. 2017), which recipes for AdamW follow too (DeiT, MAE); for LAMB to its root
    (You et al. 2020).
    """
    if config.lr_batch_size is None:
        return config.lr
    growth = global_batch_size / config.lr_batch_size
    return config.lr * (math.sqrt(growth) if config.name == "lamb" else growth)


class AdamW(torch.optim.AdamW):
    """torch's, whose methods import the compiler (two seconds of each start) only to keep it out of themselves."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, global_batch_size: int, *, partitioned: bool
) -> torch.optim.Optimizer:
    """The optimiser of a stage, fused where torch has that: one kernel per flat ZeRO partition.

    `partitioned` says whether ZeRO shares out the tensors that it steps among the ranks.
    """
    lr = peak_lr(config, global_batch_size)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=True, fused=True)
    if config.name == "lamb":
        return Lamb(groups, lr=lr, betas=config.betas, partitioned=partitioned)
    return AdamW(groups, lr=lr, betas=config.betas, fused=True)


def lr_ratio(
    step: int, total_steps: int, warmup_steps: int, schedule: str, final_ratio: float, decay_steps: int = 0
) -> float:
    """Learning rate of a step as a share of the peak: linear warm-up from 0, then the schedule down to `final_ratio`.

    The cosine follows Loshchilov & Hutter 2017 (SGDR) without restarts. `wsd` (warm-up, stable, decay) stays at the
    peak until the last `decay_steps` steps, then falls linearly (Zhai et al. 2022, who call that cooldown; Hu et al.
    2024). The first step has a rate above 0.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    start = max(total_steps - decay_steps, warmup_steps) if schedule == "wsd" else warmup_steps
    progress = max(step - start, 0) / max(total_steps - start, 1)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return final_ratio + (1 - final_ratio) * shape
