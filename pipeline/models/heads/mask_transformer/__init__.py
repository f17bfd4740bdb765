"""Segmenter's decoder (Strudel et al. 2021): a token per class attends jointly with the patches, then marks its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.models.costs import layer_flops, layer_parameters, layer_values
from pipeline.models.heads._layers import PatchKind, input_dim, map_values, norm_parameters

if TYPE_CHECKING:
    from pipeline.models.heads.head import Head
    from pipeline.models.spec import HeadSpec, Pair, ViTSpec

DEPTH = 2


class _MaskTransformer(PatchKind):
    """The option `depth` is its number of layers, with the backbone's width and kind; default: 2."""

    options = ("depth",)
    regresses = False
    row_tensors = "class_tokens", "mask_norm.weight", "mask_norm.bias"
    vectors = ("class_tokens",)

    def num_parameters(self, spec: HeadSpec, backbone: ViTSpec) -> int:
        dim, decoder = backbone.embed_dim, decoder_spec(spec, backbone)
        embed = (input_dim(spec, backbone) + 1) * dim
        own = 2 * dim + 2 * dim * dim  # the final norm and the two projections
        per_class = (dim + 2) * spec.outputs
        return norm_parameters(spec, backbone) + embed + decoder.depth * layer_parameters(decoder) + own + per_class

    def flops(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        dim, decoder, patches = backbone.embed_dim, decoder_spec(spec, backbone), grid[0] * grid[1]
        tokens = patches + spec.outputs
        embed = 2 * patches * input_dim(spec, backbone) * dim
        masks = 2 * tokens * dim * dim + 2 * patches * dim * spec.outputs
        return embed + decoder.depth * layer_flops(decoder, tokens, tokens) + masks

    def kept_values(self, spec: HeadSpec, backbone: ViTSpec, grid: Pair) -> int:
        decoder, patches = decoder_spec(spec, backbone), grid[0] * grid[1]
        tokens = patches + spec.outputs
        outputs = 3 * backbone.embed_dim * tokens + 2 * spec.outputs * patches
        return patches * map_values(spec, backbone) + decoder.depth * tokens * layer_values(decoder) + outputs

    def build(self, spec: HeadSpec, backbone: ViTSpec) -> Head:
        from pipeline.models.heads.mask_transformer.module import MaskTransformer

        return MaskTransformer(spec, backbone)


def decoder_spec(spec: HeadSpec, backbone: ViTSpec) -> ViTSpec:
    """Spec of its layers: the backbone's, without dropout, drop path and layer scale."""
    depth: int = spec.options.get("depth", DEPTH)
    return replace(backbone, depth=depth, dropout=0.0, drop_path=0.0, layer_scale=None, windows=None)


HEAD = _MaskTransformer()
