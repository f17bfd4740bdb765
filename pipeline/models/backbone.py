"""Strips a model of its heads, for formats that hold only backbones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.models.expressible import bare_spec
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import ViTSpec

NORM = "mlp_head.0"  # a classifier's name for the norm after the encoder


def bare_backbone(state: Mapping[str, Tensor], model: ModelSpec) -> tuple[dict[str, Tensor], ViTSpec]:
    """Returns the backbone of a model without its heads, its final norm under a classifier's name, and its spec.

    The norm is the one that `pooled` applies: that of the first head with one, otherwise an identity without learned
    weights. [DIST] becomes the first register, because without its own classifier it is one.
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


def _norm_name(model: ModelSpec) -> str | None:
    """Name of the norm after the encoder, which a head begins with."""
    with torch.device("meta"):
        built = MiniViT.from_spec(model, init="torch")
    norms = (head.encoder_norm for head in built.heads.values())
    norm = next((found for found in norms if found is not None), None)
    return next((name for name, module in built.named_modules() if module is norm), None) if norm else None
