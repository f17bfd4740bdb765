"""ViTPose's simple decoder (Xu et al. 2022): a map four times as fine as the patches for each of its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.models.heads._layers import PatchKind, input_dim, map_values, norm_parameters

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

FINER = 4  # times, along each side of a patch
KERNEL = 9  # values of a 3x3 kernel


class _HeatMaps(PatchKind):
    """Bilinear upsampling, ReLU and one 3x3 convolution; its only option is `layers`."""

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return norm_parameters(spec, backbone) + (KERNEL * input_dim(spec, backbone) + 1) * spec.outputs

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 2 * FINER**2 * grid[0] * grid[1] * KERNEL * input_dim(spec, backbone) * spec.outputs

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """Inputs and outputs of the norms, and the input of the convolution."""
        return grid[0] * grid[1] * (map_values(spec, backbone) + FINER**2 * input_dim(spec, backbone))

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.heat_maps.module import HeatMaps

        return HeatMaps(spec, backbone)


HEAD = _HeatMaps()
