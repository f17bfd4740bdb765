"""DeiT's second classifier (Touvron et al. 2021), on the distillation token; the logits of both are averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind, Reads

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class _Distillation(HeadKind):
    """Reads [DIST] through the classifier's norm; a copy of its matrix starts with equal logits."""

    copies = {"weight": "1.weight", "bias": "1.bias"}  # noqa: RUF012

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        if not backbone.tokens.dist or backbone.pool != "cls":
            raise ModelError(
                "heads: 'distillation' needs a distillation token as well as a class token; set dist_token: true and "
                "pool: cls"
            )

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> Reads:
        return Reads(num_tokens=2)

    def refines(self, spec: HeadSpec) -> str:
        return "mlp_head"

    def class_tensors(self, spec: HeadSpec) -> tuple[str, ...]:
        return "weight", "bias"

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return (backbone.embed_dim + 1) * spec.outputs

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 2 * backbone.embed_dim * spec.outputs

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.distillation.module import Distillation

        return Distillation(spec, backbone)


HEAD = _Distillation()
