"""Pooled features of images, for evaluating and using frozen models.

Legend: B batch, C channels, (H, W) image, P prefix tokens, N patches, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.probe import Pooling
from pipeline.errors import ModelError
from pipeline.models.heads.base import Reads
from pipeline.models.minivit import MiniViT


def pooled(model: MiniViT, images: Tensor, pooling: Pooling) -> Tensor:
    """Normalised [B, C, H, W] -> fp32 [B, D], or [B, 2 D] for `both`.

    The class token, the mean of the patches, or both concatenated (Oquab et al. 2024), each through the encoder's final
    norm, which the heads hold, or through a norm without weights if none does. For a model without class token, `both`
    is the mean of its patches. Raises ModelError for `cls` if the model has no class token.
    """
    spec = model.spec.backbone
    if pooling == "cls" and not spec.tokens.cls:
        raise ModelError("features: found cls, but the model has no class token; use patches or both")
    tokens = model.features(images, Reads()).tokens
    parts = []
    if pooling != "patches" and spec.tokens.cls:
        parts.append(tokens[:, 0])
    if pooling != "cls":
        parts.append(tokens[:, spec.tokens.num_prefix :].mean(dim=1))
    norm = next((found for head in model.heads.values() if (found := head.encoder_norm) is not None), None)
    if norm is None:
        return torch.cat([F.layer_norm(part.float(), part.shape[-1:], eps=spec.eps) for part in parts], dim=1)
    return torch.cat([norm(part) for part in parts], dim=1).float()


def features_of(model: MiniViT, images: Tensor) -> list[list[float]]:
    """Normalised [B, C, H, W] -> D numbers per image: class token or mean of the patches, as the model pools."""
    features: list[list[float]] = pooled(
        model, images, "patches" if model.spec.backbone.pool == "avg" else "cls"
    ).tolist()
    return features
