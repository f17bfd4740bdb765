"""The module of `mask_transformer`.

Legend: B batch, (h, w) grid, N = h * w patches, D width, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.heads._layers import input_dim
from pipeline.models.heads._maps import SMALL, PatchHead, as_map
from pipeline.models.heads.head import Features
from pipeline.models.heads.mask_transformer import decoder_spec
from pipeline.models.layers import Linear
from pipeline.models.spec import HeadSpec, ViTSpec


class MaskTransformer(PatchHead):
    """Logits [B, K, h, w]: cosine similarities of patch and class tokens, normalised over the classes."""

    def __init__(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().__init__(spec, backbone)
        dim = backbone.embed_dim
        self.embed = Linear(input_dim(spec, backbone), dim)
        self.class_tokens = nn.Parameter(torch.empty(spec.outputs, dim))
        self.transformer = Encoder(decoder_spec(spec, backbone))
        self.out_norm = nn.LayerNorm(dim, eps=backbone.eps)
        self.patch_projection = nn.Linear(dim, dim, bias=False)
        self.class_projection = nn.Linear(dim, dim, bias=False)
        self.mask_norm = MaskNorm(spec.outputs)
        self.initialise()

    def forward(self, features: Features) -> Tensor:
        patches = self.embed(self.patches(features))  # [B, N, D]
        classes = self.class_tokens.to(patches.dtype).expand(len(patches), -1, -1)
        tokens = self.out_norm(self.transformer(torch.cat([patches, classes], dim=1)))
        patches, classes = tokens.tensor_split([patches.shape[1]], dim=1)
        patches, classes = self.patch_projection(patches), self.class_projection(classes)
        cosines = F.normalize(patches.float(), dim=2) @ F.normalize(classes.float(), dim=2).transpose(1, 2)
        return as_map(self.mask_norm(cosines), features)  # [B, N, K] -> [B, K, h, w]

    def initialise(self) -> None:
        """As in Segmenter's code."""
        nn.init.trunc_normal_(self.class_tokens, std=SMALL)
        for projection in (self.patch_projection, self.class_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)


class MaskNorm(nn.LayerNorm):
    """LayerNorm over the classes, in fp32 because half precision cannot resolve cosines this close together."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
