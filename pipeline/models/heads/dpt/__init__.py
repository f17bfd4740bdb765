"""DPT's decoder (Ranftl et al. 2021): maps of several layers at several scales, fused from coarse to fine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads._layers import PatchKind, layers_read

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

HIDDEN = 256
KERNEL = 9  # values of a 3x3 kernel


class _DPT(PatchKind):
    """The option `hidden` is the number of channels of every scale; default: 256, as in DPT.

    `layers` are two to four; default: four evenly spaced ones including the last. With L layers, outputs are 2^(L - 2)
    times as fine as the patches along each side.
    """

    options = ("hidden",)
    num_layers = 4

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().check(spec, backbone)
        count = len(dpt_layers(spec, backbone))
        if not 2 <= count <= self.num_layers:
            raise ModelError(f"layers: a dpt head fuses 2 to {self.num_layers} layers, found {count}; name that many")

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        count, dim, c = len(dpt_layers(spec, backbone)), backbone.embed_dim, hidden_dim(spec)
        convolution = (KERNEL * c + 1) * c
        enlarging = sum((4**power * c + 1) * c for power in range(1, count - 1))
        projections = count * (2 * dim + (dim + 1) * c)  # with their norms
        units = 2 * (2 * count - 1) * convolution
        last = (KERNEL * c + 1) * half(c) + (half(c) + 1) * spec.outputs
        return projections + enlarging + convolution + units + last

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        count, dim, c = len(dpt_layers(spec, backbone)), backbone.embed_dim, hidden_dim(spec)
        patches, cells = grid[0] * grid[1], scales(count, grid)
        projections = count * patches * dim * c
        enlarging = sum(patches * 4**power * c * c for power in range(1, count - 1))
        shrinking = cells[-1] * KERNEL * c * c
        units = sum((4 if level < count - 1 else 2) * size * KERNEL * c * c for level, size in enumerate(cells))
        last = cells[0] * half(c) * (KERNEL * c + spec.outputs)
        return 2 * (projections + enlarging + shrinking + units + last)

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """Inputs and outputs of the norms, and inputs of the convolutions."""
        count, c = len(dpt_layers(spec, backbone)), hidden_dim(spec)
        patches, cells = grid[0] * grid[1], scales(count, grid)
        units = sum((4 if level < count - 1 else 2) * size for level, size in enumerate(cells))
        resized = (count - 1) * patches
        return 2 * count * patches * backbone.embed_dim + c * (units + resized + cells[0]) + half(c) * cells[0]

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.dpt.module import DPT

        return DPT(spec, backbone)


def dpt_layers(spec: HeadSpec, backbone: ViTSpec) -> tuple[int, ...]:
    """Numbers of the fused layers; the first ones give the finest maps."""
    return layers_read(spec, backbone, _DPT.num_layers)


def hidden_dim(spec: HeadSpec) -> int:
    """Channels of every scale."""
    hidden: int = spec.options.get("hidden", HIDDEN)
    return hidden


def half(channels: int) -> int:
    """Channels before the outputs."""
    return max(channels // 2, 1)


def scales(count: int, grid: Pair) -> list[int]:
    """Cells of `count` layers' maps: the last one is half as fine as the patches, the others 1, 2 and 4 times."""
    finer = [4**power * grid[0] * grid[1] for power in range(count - 2, -1, -1)]
    return [*finer, -(-grid[0] // 2) * -(-grid[1] // 2)]


HEAD = _DPT()
