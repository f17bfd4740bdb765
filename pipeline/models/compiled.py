"""`torch.compile` of an encoder, layer by layer."""

from __future__ import annotations

import logging

import torch
from torch import nn

from pipeline.models.encoder import Encoder, EncoderLayer

logger = logging.getLogger(__name__)

# The layers of an encoder, and of a decoder, have several graphs per image size: all tokens or only those that are
# read, in training, with a micro-batch a sample smaller, and in evaluation.
GRAPHS_PER_SIZE = 6


def compile_layers(model: nn.Module, image_sizes: int) -> bool:
    """Compile every encoder layer of a model in place; False, and the reason in the log, where that is impossible.

    All layers share their graphs. There are as many as `image_sizes` sizes (numbers of tokens) need; what comes beyond
    them, and what cannot be compiled, runs as it is.
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
