"""The projector of joint-embedding methods: a small MLP after the encoder, dropped by fine-tuning."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.heads.base import HeadKind, Reads

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

LAYERS, GROWTH = 3, 4  # by default; the hidden layers' width as a multiple of the encoder's


class _Projection(HeadKind):
    """Embeddings of `outputs` values. Options: `hidden`, the width of all layers but the last, and `layers`.

    With the option `patches`, the task projects patches too, so the encoder computes all tokens.
    """

    output = "embedding"
    dropped = True

    def check(self, spec: HeadSpec, backbone: ViTSpec) -> None:
        for name, value in {"dim": spec.outputs, **spec.options}.items():
            if name != "patches" and value < 1:
                raise ModelError(f"projection.{name}: found {value}, expected at least 1")

    def reads(self, spec: HeadSpec, backbone: ViTSpec) -> Reads:
        return Reads(num_tokens=None if backbone.pool == "avg" or spec.options.get("patches") else 1)

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        return 2 * backbone.embed_dim + sum((given + 1) * made for given, made in pairwise(widths(spec, backbone)))

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        return 2 * _tokens(spec, grid) * sum(given * made for given, made in pairwise(widths(spec, backbone)))

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """The norm's input, and each layer's input before and after its activation."""
        return _tokens(spec, grid) * (2 * backbone.embed_dim + 2 * sum(widths(spec, backbone)[1:-1]))

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.projection.module import Projection

        return Projection(spec, backbone)


def widths(spec: HeadSpec, backbone: ViTSpec) -> list[int]:
    """Widths of the input and of each layer's output."""
    hidden = spec.options.get("hidden") or GROWTH * backbone.embed_dim
    return [backbone.embed_dim, *[hidden] * (spec.options.get("layers", LAYERS) - 1), spec.outputs]


def _tokens(spec: HeadSpec, grid: Pair) -> int:
    """Number of projected tokens per image."""
    return 1 + (prod(grid) if spec.options.get("patches") else 0)


HEAD = _Projection()
