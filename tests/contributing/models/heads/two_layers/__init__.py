"""Two matrices with a GELU in between, on the mean of the patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind, Reads

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec


class _TwoLayers(HeadKind):
    """The option `hidden` is the width in between."""

    output = "values"

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        if spec.outputs < 1 or spec.options["hidden"] < 1:
            raise ModelError(f"head_options: found {spec.options}, expected a hidden width of at least 1")

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> Reads:
        return Reads()

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        dim, hidden = backbone.embed_dim, spec.options["hidden"]
        return 2 * dim + (dim + 1) * hidden + (hidden + 1) * spec.outputs

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 2 * spec.options["hidden"] * (backbone.embed_dim + spec.outputs)

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.two_layers.module import TwoLayers

        return TwoLayers(spec, backbone)


HEAD = _TwoLayers()
