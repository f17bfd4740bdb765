"""Shape, parameters and cost of a text tower, in closed form. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.models.costs import layer_flops, layer_parameters, layer_values
from pipeline.models.spec import HeadSpec, ViTSpec

IMAGE, TEXT, TEMPERATURE = "image_projection", "text_tower", "temperature"  # heads of an image-text model


def text_length(heads: Mapping[str, HeadSpec]) -> int | None:
    """Number of tokens per text that a model with these heads reads; None if it reads no text."""
    return next((head.options["length"] for head in heads.values() if head.kind == "text_tower"), None)


def text_spec(head: HeadSpec, backbone: ViTSpec) -> ViTSpec:
    """Spec of its pre-norm transformer; activation and eps are the backbone's, as CLIP's towers share theirs."""
    return ViTSpec(
        variant="text",
        channels=backbone.channels,
        grid=backbone.grid,
        patch=backbone.patch,
        embed_dim=head.options["dim"],
        depth=head.options["depth"],
        num_heads=head.options["num_heads"],
        mlp_dim=4 * head.options["dim"],
        activation=backbone.activation,
        eps=backbone.eps,
        positions="none",
    )


def tower_parameters(head: HeadSpec, backbone: ViTSpec) -> int:
    """Its trainable parameters."""
    spec = text_spec(head, backbone)
    rows = head.options["tokens"] + head.options["length"]
    return rows * spec.embed_dim + spec.depth * layer_parameters(spec) + (2 + head.outputs) * spec.embed_dim


def tower_values(head: HeadSpec, backbone: ViTSpec) -> int:
    """Values it keeps for the backward pass per text."""
    spec = text_spec(head, backbone)
    return head.options["length"] * spec.depth * layer_values(spec)


def tower_flops(head: HeadSpec, backbone: ViTSpec) -> int:
    """FLOPs of its matrix products for one text."""
    spec, length = text_spec(head, backbone), head.options["length"]
    return spec.depth * layer_flops(spec, length, length) + 2 * spec.embed_dim * head.outputs
