"""Learned queries that attend to the patches in a small transformer; each query detects one object or none.

After DETR (Carion et al. 2020) and YOLOS (Fang et al. 2021), with DAB-DETR's anchors (Liu et al. 2022) and DN-DETR's
denoising queries (Li et al. 2022).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.models.costs import layer_flops, layer_parameters, layer_values
from pipeline.models.heads._boxes import COORDINATES, BoxKind
from pipeline.models.heads._layers import input_dim, map_values, norm_parameters

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

QUERIES, DEPTH = 50, 3
FREQUENCIES = 6  # of the sines and cosines that encode a coordinate
PLACE_DIM = 2 * FREQUENCIES * COORDINATES


class _Queries(BoxKind):
    """One candidate per query.

    Options: `queries` (50), the most objects it detects, `depth` (3), its layers, with the backbone's width and kind,
    and `denoising`, 1 if it also learns from shifted boxes.
    """

    matching = "one"
    options = ("queries", "depth", "denoising")
    vectors = ("queries", "anchors", "labels")

    def class_tensors(self, spec: HeadSpec) -> tuple[str, ...]:
        return "classes.weight", "classes.bias", *(("labels",) if denoises(spec) else ())

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        dim, decoder, queries = backbone.embed_dim, decoder_spec(spec, backbone), num_queries(spec)
        embed = (input_dim(spec, backbone) + 1) * dim
        places = (PLACE_DIM + 1) * dim + (dim + 1) * dim
        layers = decoder.depth * layer_parameters(decoder) + 2 * dim
        outputs = (dim + 1) * (spec.outputs + 1) + (dim + 1) * dim + (dim + 1) * COORDINATES
        labels = spec.outputs * dim if denoises(spec) else 0
        own = queries * (dim + COORDINATES) + labels
        return norm_parameters(spec, backbone) + embed + places + layers + outputs + own

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        """Those of a prediction; excludes denoising queries, which exist only in training."""
        dim, decoder, queries = backbone.embed_dim, decoder_spec(spec, backbone), num_queries(spec)
        patches = grid[0] * grid[1]
        tokens = patches + queries
        embed = 2 * patches * input_dim(spec, backbone) * dim + 2 * tokens * (PLACE_DIM + dim) * dim
        layers = (decoder.depth - 1) * layer_flops(decoder, tokens, tokens) + layer_flops(decoder, tokens, queries)
        return embed + layers + 2 * queries * dim * (spec.outputs + 1 + dim + COORDINATES)

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        decoder, patches = decoder_spec(spec, backbone), grid[0] * grid[1]
        tokens = patches + num_queries(spec)
        layers = decoder.depth * tokens * layer_values(decoder)
        return patches * map_values(spec, backbone) + layers + 4 * num_queries(spec) * backbone.embed_dim

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.queries.module import QueriesHead

        return QueriesHead(spec, backbone)


def num_queries(spec: HeadSpec) -> int:
    queries: int = spec.options.get("queries", QUERIES)
    return queries


def denoises(spec: HeadSpec) -> bool:
    """Whether it has label embeddings, from which denoising queries start."""
    return "denoising" in spec.options


def decoder_spec(spec: HeadSpec, backbone: ViTSpec) -> ViTSpec:
    """Spec of its layers: the backbone's, without dropout, drop path and layer scale."""
    depth: int = spec.options.get("depth", DEPTH)
    return replace(backbone, depth=depth, dropout=0.0, drop_path=0.0, layer_scale=None, windows=None)


HEAD = _Queries()
