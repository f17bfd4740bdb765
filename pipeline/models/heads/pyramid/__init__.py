"""A simple feature pyramid from the last map (ViTDet, Li et al. 2022) under a dense head (FCOS, Tian et al. 2019)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads._boxes import COORDINATES, BoxKind
from pipeline.models.heads._layers import input_dim, map_values, norm_parameters

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

FINEST, COARSEST = 8, 32  # pixels
HIDDEN, DEPTH = 128, 2
MOST_DOUBLINGS = 2  # of the last map, which holds no finer detail


class _Pyramid(BoxKind):
    """A pyramid of candidates at several strides.

    Options: `finest` (8) and `coarsest` (32), strides in pixels, `hidden` (128), its channels, and `depth` (2), the
    number of 3x3 convolutions before each output.
    """

    matching = "many"
    options = ("finest", "coarsest", "hidden", "depth")

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        super().check(spec, backbone)
        finest, coarsest = spec.options.get("finest", FINEST), spec.options.get("coarsest", COARSEST)
        if not levels(spec, backbone):
            raise ModelError(
                f"head_options: no stride from finest {finest} to coarsest {coarsest} pixels can be reached by "
                f"doubling or halving patches of {backbone.patch[0]} pixels; set finest: {backbone.patch[0]}"
            )

    def class_tensors(self, spec: HeadSpec) -> tuple[str, ...]:
        return "classes.weight", "classes.bias"

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        hidden, depth, found = hidden_dim(spec), depth_of(spec), levels(spec, backbone)
        maps = 0
        for level in found:
            widths = map_widths(level, input_dim(spec, backbone))
            maps += sum(4 * before * after + after for before, after in pairwise(widths))
            maps += (widths[-1] + 3) * hidden
        towers = 2 * depth * (9 * hidden + 3) * hidden
        outputs = (hidden + 1) * (spec.outputs + COORDINATES)
        return norm_parameters(spec, backbone) + maps + towers + outputs + len(found)

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        hidden, work = hidden_dim(spec), 0
        per_place = 2 * depth_of(spec) * 9 * hidden * hidden + hidden * (spec.outputs + COORDINATES)
        for level in levels(spec, backbone):
            widths = map_widths(level, input_dim(spec, backbone))
            for number, (before, after) in enumerate(pairwise(widths)):
                work += 2 * 4 * before * after * grid[0] * grid[1] * 4**number
            height, width = level_grid(grid, level)
            work += 2 * height * width * (widths[-1] * hidden + per_place)
        return work

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        hidden, kept = hidden_dim(spec), grid[0] * grid[1] * map_values(spec, backbone)
        for level in levels(spec, backbone):
            height, width = level_grid(grid, level)
            widths = map_widths(level, input_dim(spec, backbone))
            finer = sum(2 * after * 4 ** (number + 1) for number, after in enumerate(widths[1:]))
            kept += grid[0] * grid[1] * finer
            tower = 3 * depth_of(spec) * hidden  # convolution, norm and activation
            kept += height * width * (widths[-1] + 2 * hidden + 2 * tower + 3 * (spec.outputs + COORDINATES))
        return kept

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.pyramid.module import PyramidHead

        return PyramidHead(spec, backbone)


def levels(spec: HeadSpec, backbone: ViTSpec) -> tuple[int, ...]:
    """Number of doublings of the map for each level, the finest first; negative numbers halve it.

    Includes the levels with strides between the finest and the coarsest requested, with a tolerance of a third.
    """
    finest, coarsest = spec.options.get("finest", FINEST), spec.options.get("coarsest", COARSEST)
    patch = math.sqrt(backbone.patch[0] * backbone.patch[1])
    return tuple(
        level for level in range(MOST_DOUBLINGS, -6, -1) if finest * 0.75 <= patch / 2**level <= coarsest * 4 / 3
    )


def level_grid(grid: Pair, level: int) -> Pair:
    """Candidates (down, across) of a level."""
    if level >= 0:
        return grid[0] << level, grid[1] << level
    return -(-grid[0] // (1 << -level)), -(-grid[1] // (1 << -level))


def map_widths(level: int, dim: int) -> list[int]:
    """Channels of the map and of each doubling of it."""
    return [max(dim >> doubled, 1) for doubled in range(max(level, 0) + 1)]


def hidden_dim(spec: HeadSpec) -> int:
    hidden: int = spec.options.get("hidden", HIDDEN)
    return hidden


def depth_of(spec: HeadSpec) -> int:
    depth: int = spec.options.get("depth", DEPTH)
    return depth


HEAD = _Pyramid()
