"""Converts weights to and from timm's `vit_*` and distilled `deit_*` models; outputs are equal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config.architecture import Activation
from pipeline.errors import ModelError
from pipeline.models.backbone import bare_backbone
from pipeline.models.expressible import CLIP_EPS, TIMM_EPS, bare_spec, check_timm
from pipeline.models.model_spec import ModelSpec
from pipeline.models.recognise import recognise, refuse_unplaced
from pipeline.models.spec import Pair, TokenSchema, ViTSpec
from pipeline.models.state import check_state

# timm's size names and numbers of heads, by (width, depth); any other shape is a vit_tiny with arguments.
TIMM_SIZES = {
    (192, 12): ("tiny", 3),
    (384, 12): ("small", 6),
    (768, 12): ("base", 12),
    (1024, 24): ("large", 16),
    (1280, 32): ("huge", 16),
}
# Patch sizes in timm's names at 224 px, the usual one first.
TIMM_PATCHES = {"tiny": (16,), "small": (16, 32, 8), "base": (16, 32, 8), "large": (16, 32, 14), "huge": (14,)}
# (ours, timm's) suffixes of keys within a layer; prefixes are `transformer.layers.N.` and `blocks.N.`.
LAYER_KEYS = (
    ("self_attn.in_proj_weight", "attn.qkv.weight"),
    ("self_attn.in_proj_bias", "attn.qkv.bias"),
    ("self_attn.out_proj.weight", "attn.proj.weight"),
    ("self_attn.out_proj.bias", "attn.proj.bias"),
    ("self_attn.q_norm.weight", "attn.q_norm.weight"),
    ("self_attn.q_norm.bias", "attn.q_norm.bias"),
    ("self_attn.k_norm.weight", "attn.k_norm.weight"),
    ("self_attn.k_norm.bias", "attn.k_norm.bias"),
    ("linear1.weight", "mlp.fc1.weight"),
    ("linear1.bias", "mlp.fc1.bias"),
    ("linear2.weight", "mlp.fc2.weight"),
    ("linear2.bias", "mlp.fc2.bias"),
    ("norm1.weight", "norm1.weight"),
    ("norm1.bias", "norm1.bias"),
    ("norm2.weight", "norm2.weight"),
    ("norm2.bias", "norm2.bias"),
    ("ls1.gamma", "ls1.gamma"),
    ("ls2.gamma", "ls2.gamma"),
)
TOP_KEYS = {
    "cls_token": "cls_token",
    "dist_token": "dist_token",
    "registers": "reg_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj.weight": "patch_embed.proj.weight",
    "patch_embed.proj.bias": "patch_embed.proj.bias",
    "embed_norm.weight": "norm_pre.weight",
    "embed_norm.bias": "norm_pre.bias",
    "mlp_head.1.weight": "head.weight",
    "mlp_head.1.bias": "head.bias",
    "dist_head.weight": "head_dist.weight",
    "dist_head.bias": "head_dist.bias",
}


def timm_config(model: ModelSpec) -> tuple[str, dict[str, Any]]:
    """(architecture, arguments) for `timm.create_model(architecture, **arguments)` to build the same model.

    A model with only heads of pretraining becomes a backbone with 0 classes, whose output is its pooled token after the
    norm. Raises `ModelError` if timm's Vision Transformer cannot express the model.
    """
    check_timm(model)
    spec = model.backbone if model.is_classifier else bare_spec(model.backbone)
    size, _ = TIMM_SIZES.get((spec.embed_dim, spec.depth), ("tiny", 3))
    arguments: dict[str, Any] = {
        "img_size": list(spec.image_size),
        "patch_size": list(spec.patch),
        "in_chans": spec.channels,
        "num_classes": model.num_classes if model.is_classifier else 0,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": _mlp_ratio(spec.embed_dim, spec.mlp_dim),
        "qk_norm": spec.qk_norm,
        "init_values": spec.layer_scale,
    }
    if spec.tokens.dist:
        known = size if size in ("tiny", "small", "base") else "tiny"
        return f"deit_{known}_distilled_patch16_224", arguments
    arguments |= {
        "class_token": spec.tokens.cls,
        "reg_tokens": spec.tokens.registers,
        "no_embed_class": not spec.tokens.positions_cover_prefix,
        "global_pool": "token" if spec.pool == "cls" else "avg",
    }
    if spec.embed_norm:
        quick = "_quickgelu" if spec.activation == "quick_gelu" else ""
        return f"vit_base_patch16_clip{quick}_224", arguments
    patches = TIMM_PATCHES[size]
    patch = spec.patch[0] if spec.patch[0] == spec.patch[1] and spec.patch[0] in patches else patches[0]
    return f"vit_{size}_patch{patch}_224", arguments


def to_timm(state: Mapping[str, Tensor], model: ModelSpec) -> dict[str, Tensor]:
    """A MiniViT state dict under timm's keys; loads strictly into the model of `timm_config(spec)`."""
    check_timm(model)
    check_state(state, model, "the state to convert")
    spec = model.backbone
    if not model.is_classifier:
        state, spec = bare_backbone(state, model)
    new = {theirs: state[ours] for ours, theirs in TOP_KEYS.items() if ours in state}
    for layer in range(spec.depth):
        for ours, theirs in LAYER_KEYS:
            key = f"transformer.layers.{layer}.{ours}"
            if key in state:
                new[f"blocks.{layer}.{theirs}"] = state[key]
    norm = "norm" if spec.pool == "cls" else "fc_norm"
    new |= {f"{norm}.{part}": state[f"mlp_head.0.{part}"] for part in ("weight", "bias")}
    new["pos_embed"] = _timm_positions(state, spec)
    if spec.embed_norm:  # timm's patch embedding then has no bias; the positions absorb it
        bias = new.pop("patch_embed.proj.bias")
        new["pos_embed"] = new["pos_embed"].clone()
        new["pos_embed"][:, -spec.num_patches :] += bias
    return new


def from_timm(
    state: Mapping[str, Tensor],
    *,
    grid: Pair | None = None,
    num_heads: int | None = None,
    eps: float | None = None,
    activation: Activation = "gelu",
) -> tuple[dict[str, Tensor], ModelSpec]:
    """Converts a timm state dict to ours, with the spec read from its shapes.

    The shapes do not determine `grid` (default: square), `num_heads` (default: by timm's sizes, otherwise one per 64
    channels), `eps` (default: timm's for such a model) and `activation`. A checkpoint without a head gets one with a
    single class, all zeros, for surgery to replace. Raises `ModelError` for tensors a MiniViT has no place for.
    """
    if "blocks.0.attn.qkv.weight" not in state or "blocks.0.mlp.fc1.weight" not in state:
        sign = recognise(state)
        some = f"{sign[0]!r} suggests {sign[1]}" if sign else f"it contains {', '.join(sorted(state)[:3])}"
        raise ModelError(f"the timm checkpoint: not timm's plain ViT; {some}")
    if "patch_embed.proj.weight" not in state or state["patch_embed.proj.weight"].ndim != 4:
        raise ModelError("the timm checkpoint: found no four-dimensional patch_embed.proj.weight; it is a hybrid ViT")
    spec = _read_spec(state, grid, num_heads, eps, activation)
    new = {ours: state[theirs] for ours, theirs in TOP_KEYS.items() if theirs in state}
    for layer in range(spec.depth):
        for ours, theirs in LAYER_KEYS:
            key = f"blocks.{layer}.{theirs}"
            if key in state:
                new[f"transformer.layers.{layer}.{ours}"] = state[key]
        bias = f"transformer.layers.{layer}.self_attn.in_proj_bias"
        new.setdefault(bias, torch.zeros(3 * spec.embed_dim))
    new.setdefault("patch_embed.proj.bias", torch.zeros(spec.embed_dim))
    norm = "norm" if "norm.weight" in state else "fc_norm"
    for part in ("weight", "bias"):
        if f"{norm}.{part}" not in state:
            raise ModelError(
                f"the timm checkpoint: found neither norm.{part} nor fc_norm.{part}; a MiniViT needs its last norm"
            )
        new[f"mlp_head.0.{part}"] = state[f"{norm}.{part}"]
    new.setdefault("mlp_head.1.weight", torch.zeros(1, spec.embed_dim))
    new.setdefault("mlp_head.1.bias", torch.zeros(1))
    _check_all_used(state, spec, norm)
    model = ModelSpec.classifier(spec, len(new["mlp_head.1.bias"]))
    check_state(new, model, "the timm checkpoint")
    return new, model


def _mlp_ratio(embed_dim: int, mlp_dim: int) -> float:
    """The ratio from which timm, which multiplies and truncates, recovers the width exactly."""
    ratio = mlp_dim / embed_dim
    return ratio if int(embed_dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _timm_positions(state: Mapping[str, Tensor], spec: ViTSpec) -> Tensor:
    """Positions, zero-padded to the rows that timm always has; in its distilled models these cover the prefix."""
    like = state["patch_embed.proj.weight"]
    table = state.get("pos_embed", like.new_zeros(1, 0, spec.embed_dim))
    covered = spec.tokens.positions_cover_prefix or spec.tokens.dist
    rows = spec.num_patches + (spec.tokens.num_prefix if covered else 0)
    return torch.cat([like.new_zeros(1, rows - table.shape[1], spec.embed_dim), table], dim=1)


def _read_spec(
    state: Mapping[str, Tensor], grid: Pair | None, num_heads: int | None, eps: float | None, activation: Activation
) -> ViTSpec:
    dim, channels, *patch = state["patch_embed.proj.weight"].shape
    depth = 1 + max(int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key)))
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    tokens = TokenSchema(cls="cls_token" in state, dist="dist_token" in state, registers=registers)
    if "pos_embed" not in state:
        raise ModelError("the timm checkpoint: found no pos_embed; only absolute positions are supported")
    rows = state["pos_embed"].shape[1]
    grid = grid or _square_grid(rows, tokens.num_prefix)
    if rows == grid[0] * grid[1]:
        tokens = TokenSchema(**{**vars(tokens), "positions_cover_prefix": tokens.num_prefix == 0})
    if num_heads is None:
        num_heads = TIMM_SIZES.get((dim, depth), ("", max(dim // 64, 1)))[1]
    gamma = state.get("blocks.0.ls1.gamma")
    return ViTSpec(
        variant="timm",
        channels=channels,
        grid=grid,
        patch=(patch[0], patch[1]),
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=state["blocks.0.mlp.fc1.weight"].shape[0],
        activation=activation,
        eps=eps or (CLIP_EPS if "norm_pre.weight" in state else TIMM_EPS),
        pool="avg" if "fc_norm.weight" in state or not tokens.cls else "cls",
        tokens=tokens,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        layer_scale=None if gamma is None else 1.0 if gamma.is_meta else gamma.mean().item(),
        embed_norm="norm_pre.weight" in state,
    )


def _square_grid(rows: int, num_prefix: int) -> Pair:
    for patches in (rows - num_prefix, rows):
        side = math.isqrt(max(patches, 0))
        if side and side * side == patches:
            return side, side
    raise ModelError(
        f"the timm checkpoint: its {rows} positions with {num_prefix} prefix tokens do not form a square grid; start "
        "from `timm:local-dir:FOLDER`, whose config.json names the image size"
    )


def _check_all_used(state: Mapping[str, Tensor], spec: ViTSpec, norm: str) -> None:
    blocks = {f"blocks.{layer}.{theirs}" for layer in range(spec.depth) for _, theirs in LAYER_KEYS}
    used = blocks | set(TOP_KEYS.values()) | {f"{norm}.weight", f"{norm}.bias"}
    refuse_unplaced("the timm checkpoint", state.keys() - used)
