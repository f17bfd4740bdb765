"""The layers that a head on patches reads, and the checks that such heads share. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import TYPE_CHECKING, ClassVar

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind, Reads

if TYPE_CHECKING:
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

LAYERS, CELLS = "layers", "cells"
QUANTITIES = "quantities"  # option of a head whose outputs are quantities such as depth, not classes


class PatchKind(HeadKind):
    """Heads that give every patch its outputs, from the maps of one layer or of several.

    The option `layers` numbers them from 0; default: `num_layers` evenly spaced ones including the last. `options` are
    further options, each a whole number above 0. Rows of `row_tensors` are the outputs, which are classes unless the
    option `quantities` is set.
    """

    options: Collection[str] = ()
    row_tensors: ClassVar[tuple[str, ...]] = ("classes.weight", "classes.bias")
    num_layers: ClassVar[int] = 1
    regresses: ClassVar[bool] = True  # whether outputs can be quantities; not if they are normalised over classes

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        if spec.outputs < 1:
            raise ModelError(f"heads: a {spec.kind} head has {spec.outputs} outputs, but needs at least 1")
        known = (LAYERS, *self.options)
        if spec.options.get(QUANTITIES) and not self.regresses:
            raise ModelError(
                f"heads: a {spec.kind} head compares classes and cannot predict quantities; use another one"
            )
        for name, value in spec.options.items():
            if name not in (*known, QUANTITIES):
                raise ModelError(
                    f"head_options: a {spec.kind} head has no option {name!r}; allowed: {', '.join(known)}"
                )
            if name not in (LAYERS, QUANTITIES) and value < 1:
                raise ModelError(f"head_options: {name} of a {spec.kind} head is {value}, but must be at least 1")
        check_layers(layers_read(spec, backbone, self.num_layers), backbone.depth)

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> Reads:
        return Reads(layers=layers_read(spec, backbone, self.num_layers))

    def class_tensors(self, spec: HeadSpec) -> tuple[str, ...]:
        return () if spec.options.get(QUANTITIES) else self.row_tensors


class CellKind(PatchKind):
    """Heads on patches whose last module, `classes`, is linear and outputs one or several cells per patch.

    The option `cells` is their number along each side of a patch.
    """

    options: Collection[str] = (CELLS,)
    vectors = ("classes.bias",)

    def classes_dim(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        """Width of the input of `classes`."""
        return input_dim(spec, backbone)

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        outputs = spec.outputs * cells_per_patch(spec) ** 2
        return norm_parameters(spec, backbone) + (self.classes_dim(spec, backbone) + 1) * outputs

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 2 * prod(grid) * self.classes_dim(spec, backbone) * spec.outputs * cells_per_patch(spec) ** 2

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return prod(grid) * map_values(spec, backbone)


def layers_read(spec: HeadSpec, backbone: ViTSpec, count: int = 1) -> tuple[int, ...]:
    """Numbers of the layers whose maps the head reads; by default `count` evenly spaced ones."""
    count = min(count, backbone.depth)
    spaced = [(place + 1) * backbone.depth // count - 1 for place in range(count)]
    return tuple(spec.options.get(LAYERS) or spaced)


def check_layers(layers: tuple[int, ...], depth: int) -> None:
    """Raise `ModelError` if layers do not exist or are not in ascending order, or if the last is missing."""
    missing = [number for number in layers if not 0 <= number < depth]
    if missing:
        raise ModelError(
            f"layers: found layer {missing[0]}, but the model's layers are 0 to {depth - 1}; choose from those"
        )
    if list(layers) != sorted(set(layers)):
        raise ModelError(f"layers: found {list(layers)}, expected distinct numbers in ascending order")
    if layers[-1] != depth - 1:
        raise ModelError(
            f"layers: {list(layers)} leave out the last layer {depth - 1}, and layers above those that heads read are "
            f"not trained; add {depth - 1}, or set model.depth to {layers[-1] + 1}"
        )


def map_values(spec: HeadSpec, backbone: ViTSpec) -> int:
    """Values per patch that are kept before and after the norms."""
    return 2 * input_dim(spec, backbone)


def norm_parameters(spec: HeadSpec, backbone: ViTSpec) -> int:
    """Parameters of one LayerNorm for each layer that the head reads."""
    return 2 * input_dim(spec, backbone)


def cells_per_patch(spec: HeadSpec) -> int:
    """Outputs along each side of a patch."""
    cells: int = spec.options.get(CELLS, 1)
    return cells


def input_dim(spec: HeadSpec, backbone: ViTSpec) -> int:
    """Width of all the maps, concatenated."""
    return len(layers_read(spec, backbone)) * backbone.embed_dim
