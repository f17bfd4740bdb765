"""Classifies a whole image: LayerNorm and one matrix on the class token, or on the mean of the patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind, Reads

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class _Classifier(HeadKind):
    """The backbone's `pool` selects its input."""

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        if spec.outputs < 1:
            raise ModelError(f"model.num_classes: found {spec.outputs}, expected at least 1")

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> Reads:
        return Reads(num_tokens=None if backbone.pool == "avg" else 1)

    def class_tensors(self, spec: HeadSpec) -> tuple[str, ...]:
        return "1.weight", "1.bias"

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return 2 * backbone.embed_dim + (backbone.embed_dim + 1) * spec.outputs

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 2 * backbone.embed_dim * spec.outputs

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.classifier.module import Classifier

        return Classifier(spec, backbone)


HEAD = _Classifier()
