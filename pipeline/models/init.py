"""Initial weights, by source. Layers start with torch's defaults (the tutorial's); these replace them on request.

Heads are initialised like the encoder, then override what should start differently. A model's own parameters, those of
no module in it, are its tokens and positions.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pipeline.errors import ModelError
from pipeline.models.heads.head import Head
from pipeline.models.layers import LayerScale
from pipeline.models.patch_embed import PatchProjection
from pipeline.models.self_attention import SelfAttention


def keep_torch(model: nn.Module) -> None:
    """The tutorial's: torch's defaults, zero class token and positions, and encoder layers that start out equal."""


def init_mae(model: nn.Module) -> None:
    """MAE's initialisation (He et al. 2022); for the encoder that of the original ViT (Dosovitskiy et al. 2021).

    Xavier uniform for every matrix, including the patch projection; zero biases; normal(0.02) tokens and positions.
    It scales with the width, which matters for the narrow variants.
    """
    _xavier_matrices(model)
    _zero_biases(model)
    _normal_tokens(model)
    _start_heads(model)


def init_timm(model: nn.Module) -> None:
    """The default of timm: truncated normal(0.02) for every matrix and the positions, zero biases.

    CLS and registers are almost zero, normal(1e-6); the patch projection keeps Conv2d's default.
    """
    for module in model.modules():
        if isinstance(module, SelfAttention):
            nn.init.trunc_normal_(module.in_proj_weight, std=0.02)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
    _zero_biases(model)
    _normal_tokens(model)
    for name, token in model.named_parameters(recurse=False):
        if name in ("cls_token", "registers"):
            nn.init.normal_(token, std=1e-6)
    _start_heads(model)


INITIALISERS: dict[str, Callable[[nn.Module], None]] = {"torch": keep_torch, "mae": init_mae, "timm": init_timm}


def initialise(model: nn.Module, name: str) -> None:
    """Apply an initialiser by name. Raises `ModelError`, listing the valid names, for unknown ones."""
    if name not in INITIALISERS:
        raise ModelError(f"init: {name!r} is not an initialiser; use one of {', '.join(INITIALISERS)}")
    INITIALISERS[name](model)


def initialise_head(head: Head) -> None:
    """Initialise a new head on an existing backbone as `init_mae` does."""
    _xavier_matrices(head)
    _zero_biases(head)
    head.initialise()


def _xavier_matrices(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, PatchProjection):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))
        elif isinstance(module, SelfAttention):
            nn.init.xavier_uniform_(module.in_proj_weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)


def _zero_biases(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.gamma, module.init)


def _normal_tokens(model: nn.Module) -> None:
    for name, token in model.named_parameters(recurse=False):
        if name == "pos_embed":
            nn.init.trunc_normal_(token, std=0.02)
        else:
            nn.init.normal_(token, std=0.02)


def _start_heads(model: nn.Module) -> None:
    for head in model.children():
        if isinstance(head, Head):
            head.initialise()
