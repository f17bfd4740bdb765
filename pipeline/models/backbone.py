"""A model without heads, as formats that hold only backbones take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.models.minivit import MiniViT
from pipeline.models.spec import ModelSpec, ViTSpec

NORM = "mlp_head.0"  # as a classifier calls the norm behind the encoder


def bare_backbone(state: Mapping[str, Tensor], model: ModelSpec) -> tuple[dict[str, Tensor], ViTSpec]:
    """The backbone of a model whose heads are dropped, and its last norm as that of a classifier.

    The norm is the one that `pooled` applies: of the first head that has one, else one without weights. [DIST] becomes
    the first register, which without a classifier of its own it is.
    """
    spec = bare_spec(model.backbone)
    kept = {key: tensor for key, tensor in state.items() if key.partition(".")[0] not in model.heads}
    norm = _norm_name(model)
    shape = {"weight": torch.ones(spec.embed_dim), "bias": torch.zeros(spec.embed_dim)}
    kept |= {f"{NORM}.{part}": state[f"{norm}.{part}"] if norm else plain for part, plain in shape.items()}
    if "dist_token" in kept:
        others = [kept["registers"]] if "registers" in kept else []
        kept["registers"] = torch.cat([kept.pop("dist_token"), *others], dim=1)
    return kept, spec


def bare_spec(spec: ViTSpec) -> ViTSpec:
    """The backbone that `bare_backbone` gives."""
    if not spec.tokens.dist:
        return spec
    return replace(spec, tokens=replace(spec.tokens, dist=False, registers=spec.tokens.registers + 1))


def _norm_name(model: ModelSpec) -> str | None:
    """Name of the norm behind the encoder, which a head begins with."""
    with torch.device("meta"):
        built = MiniViT.from_spec(model, init="torch")
    norms = (head.encoder_norm for head in built.heads.values())
    norm = next((found for found in norms if found is not None), None)
    return next((name for name, module in built.named_modules() if module is norm), None) if norm else None
