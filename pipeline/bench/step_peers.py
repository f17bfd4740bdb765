"""The models that our step is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.model_spec import ModelSpec


class StockViT(nn.Module):
    """The tutorial's structure built from torch's own modules, pre-norm and GELU."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        spec = model.backbone
        dim = spec.embed_dim
        self.proj = nn.Conv2d(spec.channels, dim, kernel_size=spec.patch, stride=spec.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.num_patches + 1, dim))
        layer = nn.TransformerEncoderLayer(
            dim,
            spec.num_heads,
            spec.mlp_dim,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=spec.eps,
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(layer, spec.depth, enable_nested_tensor=False)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim, eps=spec.eps), nn.Linear(dim, model.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, K]"""
        x = self.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        logits: Tensor = self.mlp_head(self.transformer(x)[:, 0])
        return logits


def timm_vit(model_spec: ModelSpec) -> nn.Module:
    """A timm model of the same shape."""
    from timm.models.vision_transformer import VisionTransformer

    spec = model_spec.backbone
    model: nn.Module = VisionTransformer(
        img_size=spec.image_size,
        patch_size=spec.patch[0],
        in_chans=spec.channels,
        num_classes=model_spec.num_classes,
        embed_dim=spec.embed_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        mlp_ratio=spec.mlp_dim / spec.embed_dim,
    )
    return model
