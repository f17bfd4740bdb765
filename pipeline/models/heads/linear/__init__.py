"""Linear outputs per patch: the simplest dense head, and the usual probe of a backbone."""

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


class _Linear(CellKind):
    """LayerNorm and a 1x1 convolution; the option `cells` is the number of outputs along each side of a patch."""

    options = (CELLS,)

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return norm_parameters(spec, backbone) + cell_parameters(spec, input_dim(spec, backbone))

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 2 * grid[0] * grid[1] * input_dim(spec, backbone) * spec.outputs * cells_per_patch(spec) ** 2

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return grid[0] * grid[1] * map_values(spec, backbone)

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.linear.module import LinearHead

        return LinearHead(spec, backbone)


HEAD = _Linear()
