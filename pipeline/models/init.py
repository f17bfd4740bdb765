"""Initial weights, by source. Layers start with torch's defaults (the tutorial's); these replace them on request.

Heads are initialised like the encoder, then override what should start differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from pipeline.errors import ModelError
from pipeline.models.encoder import SelfAttention
from pipeline.models.layers import LayerScale
from pipeline.models.patch_embed import PatchProjection

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.minivit import MiniViT


def keep_torch(model: MiniViT) -> None:
    """The tutorial's: torch's defaults, zero class token and positions, and encoder layers that start out equal."""


def init_mae(model: MiniViT) -> None:
    """MAE's initialisation (He et al. 2022); for the encoder that of the original ViT (Dosovitskiy et al. 2021).

    Xavier uniform for every matrix, including the patch projection; zero biases; normal(0.02) tokens and positions.
    It scales with the width, which matters for the narrow variants.
    """
    _xavier_matrices(model)
    _zero_biases(model)
    _normal_tokens(model)
    _start_heads(model)


def init_timm(model: MiniViT) -> None:
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
    for token in (model.cls_token, model.registers):
        if token is not None:
            nn.init.normal_(token, std=1e-6)
    _start_heads(model)


INITIALISERS: dict[str, Callable[[MiniViT], None]] = {"torch": keep_torch, "mae": init_mae, "timm": init_timm}


def initialise(model: MiniViT, name: str | None) -> None:
    """Apply an initialiser by name; `None` is torch's for post-norm models and MAE's for pre-norm ones."""
    if name is None:
        name = "torch" if model.spec.backbone.norm == "post" else "mae"
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


def _normal_tokens(model: MiniViT) -> None:
    for name in ("cls_token", "dist_token", "registers", "mask_token"):
        token = getattr(model, name)
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if isinstance(model.pos_embed, nn.Parameter):
        nn.init.trunc_normal_(model.pos_embed, std=0.02)


def _start_heads(model: MiniViT) -> None:
    for head in model.heads.values():
        head.initialise()
