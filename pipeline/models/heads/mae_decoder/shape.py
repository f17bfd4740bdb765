"""Shape, parameters and cost of a masked autoencoder's decoder, in closed form. Imports no torch."""

from __future__ import annotations

from math import prod

from pipeline.models.costs import layer_flops, layer_parameters, layer_values
from pipeline.models.spec import HeadSpec, Pair, TokenSchema, ViTSpec

HEAD_DIM = 32  # of the paper's decoder: 512 wide, 16 heads


def mae_decoder(backbone: ViTSpec, dim: int | None = None, depth: int | None = None) -> HeadSpec:
    """A decoder for a backbone: by default half as wide, rounded up to a multiple of 4, and a third as deep."""
    return HeadSpec(
        "mae_decoder",
        options={"dim": dim or -(-backbone.embed_dim // 8) * 4, "depth": depth or max(backbone.depth // 3, 1)},
    )


def decoder_spec(head: HeadSpec, backbone: ViTSpec) -> ViTSpec:
    """Spec of its light pre-norm transformer; patches and prefix tokens are the backbone's."""
    dim, tokens = head.options["dim"], backbone.tokens
    most = max(dim // HEAD_DIM, 1)
    return ViTSpec(
        variant="decoder",
        channels=backbone.channels,
        grid=backbone.grid,
        patch=backbone.patch,
        embed_dim=dim,
        depth=head.options["depth"],
        num_heads=next(heads for heads in range(most, 0, -1) if dim % heads == 0),
        mlp_dim=4 * dim,
        eps=backbone.eps,
        pool=backbone.pool,
        tokens=TokenSchema(tokens.cls, tokens.dist, registers=tokens.registers),
        positions="sincos",
    )


def decoder_parameters(head: HeadSpec, backbone: ViTSpec) -> int:
    """Its trainable parameters."""
    spec = decoder_spec(head, backbone)
    dim, pixels = spec.embed_dim, backbone.channels * prod(backbone.patch)
    embed = 2 * backbone.embed_dim + (backbone.embed_dim + 1) * dim
    return embed + dim + spec.depth * layer_parameters(spec) + 2 * dim + (dim + 1) * pixels


def decoder_values(head: HeadSpec, backbone: ViTSpec, patches: int) -> int:
    """Values it keeps for the backward pass per image of `patches` patches."""
    spec = decoder_spec(head, backbone)
    tokens = patches + spec.tokens.num_prefix
    return tokens * (spec.depth * layer_values(spec) + 3 * spec.embed_dim)


def decoder_flops(head: HeadSpec, backbone: ViTSpec, *, visible: int, masked: int, patch: Pair | None = None) -> int:
    """FLOPs of its matrix products for one image with these numbers of visible and masked patches of `patch` pixels."""
    spec = decoder_spec(head, backbone)
    dim, given = spec.embed_dim, visible + spec.tokens.num_prefix
    length = given + masked
    embed = 2 * given * backbone.embed_dim * dim
    layers = (spec.depth - 1) * layer_flops(spec, length, length) + layer_flops(spec, length, masked)
    return embed + layers + 2 * masked * dim * backbone.channels * prod(patch or backbone.patch)
