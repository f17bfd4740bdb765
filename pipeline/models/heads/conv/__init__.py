"""The tutorial's dense head: a 3x3 convolution, ReLU and a 1x1 convolution on the grid of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.models.heads._layers import (
    CELLS,
    CellKind,
    cell_parameters,
    cells_per_patch,
    input_dim,
    map_values,
    norm_parameters,
)

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

HIDDEN = 256


class _Conv(CellKind):
    """The option `hidden` is the number of channels in between; default: 256. `cells` as in a linear head."""

    options = ("hidden", CELLS)

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        hidden = hidden_dim(spec)
        convolution = (9 * input_dim(spec, backbone) + 1) * hidden
        return norm_parameters(spec, backbone) + convolution + cell_parameters(spec, hidden)

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        outputs = spec.outputs * cells_per_patch(spec) ** 2
        return 2 * grid[0] * grid[1] * hidden_dim(spec) * (9 * input_dim(spec, backbone) + outputs)

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return grid[0] * grid[1] * (map_values(spec, backbone) + hidden_dim(spec))

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.conv.module import ConvHead

        return ConvHead(spec, backbone)


def hidden_dim(spec: HeadSpec) -> int:
    """Channels between the two convolutions."""
    hidden: int = spec.options.get("hidden", HIDDEN)
    return hidden


HEAD = _Conv()
