"""Parameters and FLOPs of a backbone and its layers in closed form, without building them."""

from __future__ import annotations

from math import prod

from pipeline.models.spec import Pair, ViTSpec, whole_patches, window_counts, window_sides


def backbone_parameters(spec: ViTSpec) -> int:
    """Trainable parameters without the heads."""
    dim, tokens = spec.embed_dim, spec.tokens
    patch_embed = (spec.channels * spec.patch[0] * spec.patch[1] + 1) * dim
    own_tokens = (tokens.num_prefix + int(tokens.mask)) * dim
    positions = spec.num_positions * dim if spec.positions == "learned" else 0
    embed_norm = 2 * dim if spec.embed_norm else 0
    return patch_embed + own_tokens + positions + embed_norm + spec.depth * layer_parameters(spec)


def frozen_layers(spec: ViTSpec, share: float) -> int:
    """Number of layers, from the bottom, that a share freezes."""
    return int(share * spec.depth + 0.5)


def frozen_parameters(spec: ViTSpec, share: float) -> int:
    """Parameters of the embedding and of the frozen layers; 0 for a share of 0."""
    above = spec.depth - frozen_layers(spec, share)
    return backbone_parameters(spec) - above * layer_parameters(spec) if share else 0


def layer_parameters(spec: ViTSpec) -> int:
    dim = spec.embed_dim
    attention = 4 * (dim * dim + dim) + (4 * (dim // spec.num_heads) if spec.qk_norm else 0)
    feed_forward = 2 * dim * spec.mlp_dim + spec.mlp_dim + dim
    norms = 4 * dim
    layer_scale = 2 * dim if spec.layer_scale is not None else 0
    return attention + feed_forward + norms + layer_scale


def backbone_flops(
    spec: ViTSpec, image_size: Pair | None = None, patch: Pair | None = None, *, num_tokens: int | None = None
) -> int:
    """FLOPs of one image's pass through a backbone, counted as in `model_costs.forward_flops`.

    The last layer computes only the first `num_tokens` tokens, or all if None.
    """
    patch = patch or spec.patch
    grid = whole_patches(image_size or spec.image_size, patch)
    dim, patches = spec.embed_dim, grid[0] * grid[1]
    length = patches + spec.tokens.num_prefix
    read = length if num_tokens is None else num_tokens
    patch_embed = 2 * patches * spec.channels * patch[0] * patch[1] * dim
    layers = sum(
        layer_flops(spec, length, length, _pairs_in_windows(spec, layer, grid)) for layer in range(spec.depth - 1)
    )
    return patch_embed + layers + layer_flops(spec, length, read)


def _pairs_in_windows(spec: ViTSpec, layer: int, grid: Pair) -> int | None:
    """Pairs of query and key that a layer computes, with the padding of its windows; None if it is global."""
    most = spec.window_of(layer)
    if most is None:
        return None
    prefix, sides = spec.tokens.num_prefix, window_sides(grid, most)
    windows = prod(window_counts(grid, sides))
    return prefix * (prefix + prod(grid)) + windows * prod(sides) * (prefix + prod(sides))


def attention_scores(spec: ViTSpec, length: int, grid: Pair) -> int:
    """Pairs of query and key of one image of `length` tokens, over all layers and heads."""
    pairs = (_pairs_in_windows(spec, layer, grid) for layer in range(spec.depth))
    return spec.num_heads * sum(length**2 if each is None else each for each in pairs)


def layer_values(spec: ViTSpec) -> int:
    """Values per token that a layer keeps for the backward pass (Korthikanti et al. 2022): 8 D + 2 M.

    They are the inputs of both norms, of qkv, of the projection and of the two linear layers, of the activation, and q,
    k and v.
    """
    return 8 * spec.embed_dim + 2 * spec.mlp_dim


def layer_flops(spec: ViTSpec, length: int, queries: int, pairs: int | None = None) -> int:
    """FLOPs of one layer over `length` tokens, `queries` of them with outputs.

    `pairs` counts the pairs of query and key in its attention; by default every query has all keys.
    """
    dim, pairs = spec.embed_dim, queries * length if pairs is None else pairs
    key_value = 2 * length * dim * 2 * dim
    query_out = 2 * queries * dim * 2 * dim
    attention = 2 * 2 * pairs * dim
    feed_forward = 2 * 2 * queries * dim * spec.mlp_dim
    return key_value + query_out + attention + feed_forward
