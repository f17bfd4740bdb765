"""The sizes of MiniViT, as a table. A new size is a new row here, and one in the table of this folder's README."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.errors import ModelError
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import Pair, TokenSchema, ViTSpec, as_pair, whole_patches


@dataclass(frozen=True)
class Variant:
    """One row: the shape of the encoder, its usual patch in pixels, the source, and other fields of its spec.

    A changed width keeps the ratio of `mlp_dim` to it, unless the row has a `fixed_mlp`.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch: int
    note: str
    fixed_mlp: bool = False
    others: dict[str, Any] = field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    "nano": Variant(64, 4, 2, 256, 4, "0.2 M, for images of 28-32 px"),
    "micro": Variant(96, 6, 3, 384, 4, "0.7 M, for images of 28-64 px"),
    "tiny": Variant(192, 12, 3, 768, 16, "ViT-Ti, DeiT (Touvron et al. 2021)"),
    "small": Variant(384, 12, 6, 1536, 16, "ViT-S, DeiT (Touvron et al. 2021)"),
    "base": Variant(768, 12, 12, 3072, 16, "ViT-B (Dosovitskiy et al. 2021)"),
    "large": Variant(1024, 24, 16, 4096, 16, "ViT-L (Dosovitskiy et al. 2021)"),
    "huge": Variant(1280, 32, 16, 5120, 14, "ViT-H (Dosovitskiy et al. 2021)"),
    "giant": Variant(1408, 40, 16, 6144, 14, "ViT-g (Zhai et al. 2022)"),
    "tutorial": Variant(
        768,
        6,
        8,
        2048,
        16,
        "the MiniViT tutorial, on torch's own encoder defaults",
        fixed_mlp=True,
        others={"norm": "post", "activation": "relu", "eps": 1e-5, "dropout": 0.1, "fewer_patches": "slice"},
    ),
}

# Ours -> the token schema's.
TOKEN_FIELDS = {
    "class_token": "cls",
    "dist_token": "dist",
    "mask_token": "mask",
    "registers": "registers",
    "prefix_positions": "positions_cover_prefix",
}
# What `build_backbone` takes besides its own arguments.
OVERRIDES = (
    *(f.name for f in fields(ViTSpec) if f.name not in ("variant", "channels", "grid", "patch", "tokens")),
    *TOKEN_FIELDS,
)


def build_spec(variant: str, *, image_size: int | Pair, num_classes: int, **settings: Any) -> ModelSpec:
    """A classifier on `build_backbone(variant, image_size=image_size, **settings)`."""
    return ModelSpec.classifier(build_backbone(variant, image_size=image_size, **settings), num_classes)


def build_backbone(
    variant: str,
    *,
    image_size: int | Pair,
    channels: int = 3,
    patch_size: int | Pair | None = None,
    **overrides: Any,
) -> ViTSpec:
    """The backbone of a named variant at an image size (pixels, one number or (height, width)).

    `overrides` are fields of the spec, and of its token schema by the names in `TOKEN_FIELDS`. A model without class
    token pools by average. Raises `ModelError` on unknown names and impossible combinations.
    """
    row = find_variant(variant)
    for key in overrides:
        if key not in OVERRIDES:
            near = difflib.get_close_matches(key, OVERRIDES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(OVERRIDES)}"
            raise ModelError(f"model.{key}: not a field of a variant; {hint}")

    tokens = TokenSchema(**{theirs: overrides.pop(ours) for ours, theirs in TOKEN_FIELDS.items() if ours in overrides})
    settings: dict[str, Any] = {
        "embed_dim": row.embed_dim,
        "depth": row.depth,
        "num_heads": row.num_heads,
        "mlp_dim": row.mlp_dim,
        "pool": "cls" if tokens.cls else "avg",
        **row.others,
        **overrides,
    }
    if "mlp_dim" not in overrides and not row.fixed_mlp:
        settings["mlp_dim"] = settings["embed_dim"] * row.mlp_dim // row.embed_dim

    patch = as_pair(row.patch if patch_size is None else patch_size)
    return ViTSpec(
        variant=variant,
        channels=channels,
        grid=whole_patches(as_pair(image_size), patch),
        patch=patch,
        tokens=tokens,
        **settings,
    )


def find_variant(name: str) -> Variant:
    """The row of that name; `ModelError` with the nearest valid name otherwise."""
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f"did you mean {near[0]!r}? Allowed: " if near else "allowed: "
    raise ModelError(f"model.variant: {name!r} is not a variant; {hint}{', '.join(VARIANTS)}")
