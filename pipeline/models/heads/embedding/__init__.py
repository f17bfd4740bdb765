"""Embeds an image as one vector for comparison: LayerNorm and a matrix without bias, as in CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind, Reads

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class _Embedding(HeadKind):
    """Reads the class token or the mean of the patches, depending on the backbone's `pool`."""

    output = "embedding"

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        if spec.outputs < 1:
            raise ModelError(f"embedding_dim: found {spec.outputs}, expected at least 1")

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> Reads:
        return Reads(num_tokens=None if backbone.pool == "avg" else 1)

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return 2 * backbone.embed_dim + backbone.embed_dim * spec.outputs

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 2 * backbone.embed_dim * spec.outputs

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.embedding.module import Embedding

        return Embedding(spec, backbone)


HEAD = _Embedding()
