"""Applies `torch.compile` to an encoder, layer by layer."""

from __future__ import annotations

import logging

import torch
from torch import nn

from pipeline.models.encoder import Encoder, EncoderLayer

logger = logging.getLogger(__name__)

# Graphs of an encoder's or decoder's layers per image size: for all tokens, only those that are read, or in windows,
# each in training, with a micro-batch one sample smaller, and in evaluation.
GRAPHS_PER_SIZE = 9


def compile_layers(model: nn.Module, image_sizes: int) -> bool:
    """Compile every encoder layer of a model in place; if that is impossible, log the reason and return False.

    All layers share their graphs, at most what `image_sizes` sizes (token counts) need. Anything beyond that, or that
    cannot be compiled, runs eagerly.
    """
    device = next(model.parameters()).device
    try:
        torch.compile(torch.neg)(torch.zeros(1, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines()
        logger.warning(
            "engine.compile: torch.compile does not work on this machine (%s); the model runs uncompiled",
            reason[0] if reason else type(error).__name__,
        )
        return False
    encoders = sum(isinstance(module, Encoder) for module in model.modules())
    torch._dynamo.config.recompile_limit = GRAPHS_PER_SIZE * image_sizes * encoders
    torch._dynamo.config.suppress_errors = True
    for module in model.modules():
        if isinstance(module, EncoderLayer):
            module.compile(dynamic=False)
    return True
