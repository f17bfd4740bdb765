"""The head of SimMIM (Xie et al. 2022): predicts the pixels of each masked patch from its own token by one matrix."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class _SimMIM(HeadKind):
    """The task calls it, with the masks."""

    output = "pixels"
    dropped = True

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        if not backbone.tokens.mask:
            raise ModelError("heads: 'simmim' reads [MASK] tokens, which this model lacks; set mask_token: true")

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        return None

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        dim = backbone.embed_dim
        return 2 * dim + (dim + 1) * backbone.channels * prod(backbone.patch)

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """With all patches masked, the upper bound."""
        return 2 * prod(grid) * backbone.embed_dim * backbone.channels * prod(backbone.patch)

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.simmim.module import SimMIMHead

        return SimMIMHead(spec, backbone)


HEAD = _SimMIM()
