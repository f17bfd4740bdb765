"""Parameter groups, optimisers and learning-rate schedules."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from pipeline.config.schema import OptimizerConfig

BLOCK = re.compile(r"transformer\.layers\.(\d+)\.")


def layer_of(name: str, depth: int) -> int:
    """Depth of a parameter for layer-wise decay: 0 for the embeddings, 1..depth for blocks, depth + 1 for the head."""
    if match := BLOCK.match(name):
        return int(match.group(1)) + 1
    return depth + 1 if name.startswith(("mlp_head", "transformer.norm")) else 0


def parameter_groups(model: nn.Module, config: OptimizerConfig, depth: int) -> list[dict[str, Any]]:
    """Groups of parameters that share weight decay and learning-rate scale.

    Matrices and patch kernels decay; biases, norms, positions and tokens do not. With `layer_decay` d, a layer's rate
    is scaled by d ** (depth + 1 - layer) (layer-wise decay as in BEiT, Bao et al. 2021).
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and not name.endswith(("_token", "pos_embed", "registers"))
            groups[layer_of(name, depth) if config.layer_decay else 0, decays].append(parameter)
    decay = config.layer_decay or 1.0
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": decay ** (depth + 1 - layer) if config.layer_decay else 1.0,
        }
        for (layer, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser of a stage, in its fused form: one kernel per flat ZeRO partition."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def lr_ratio(step: int, total_steps: int, warmup_steps: int, schedule: str, final_ratio: float) -> float:
    """Learning rate of a step as a share of the peak: linear warm-up from 0, then the schedule down to `final_ratio`.

    The cosine follows Loshchilov & Hutter 2017 (SGDR) without restarts. The first step has a rate above 0.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    if schedule == "constant":
        return 1.0
    shape = 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final_ratio + (1 - final_ratio) * shape
