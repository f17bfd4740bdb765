"""The tutorial's dense head: a 3x3 convolution, ReLU and a 1x1 convolution on the grid of patches."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from pipeline.models.heads._layers import CELLS, CellKind, input_dim

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

HIDDEN = 256


class _Conv(CellKind):
    """The option `hidden` is the number of channels in between; default: 256."""

    options = ("hidden", CELLS)

    def classes_dim(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return hidden_dim(spec)

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        convolution = (9 * input_dim(spec, backbone) + 1) * hidden_dim(spec)
        return super().num_parameters(spec, backbone) + convolution

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        convolution = 2 * prod(grid) * 9 * input_dim(spec, backbone) * hidden_dim(spec)
        return super().flops(spec, backbone, grid) + convolution

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return super().kept_values(spec, backbone, grid) + prod(grid) * hidden_dim(spec)

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.conv.module import ConvHead

        return ConvHead(spec, backbone)


def hidden_dim(spec: HeadSpec) -> int:
    """Channels between the two convolutions."""
    hidden: int = spec.options.get("hidden", HIDDEN)
    return hidden


HEAD = _Conv()
