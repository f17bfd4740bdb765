"""Converts weights of `transformers`' ViT, DeiT and DINOv2 from Hugging Face's hub; outputs are equal.

Reads both layouts: that of the files on the hub, and that of the modules since version 5.

Legend: D width, K classes, N patches.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config.architecture import Activation
from pipeline.errors import ModelError
from pipeline.models.model_spec import ModelSpec
from pipeline.models.recognise import refuse_unplaced
from pipeline.models.spec import Pair, TokenSchema, ViTSpec
from pipeline.models.state import check_state

log = logging.getLogger(__name__)

EPS, DINOV2_EPS = 1e-12, 1e-6  # defaults of `transformers`
HEAD_WIDTH = 64  # of every published size
PREFIX = re.compile(r"(vit|deit|dinov2|dinov2_with_registers)\.")
LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias|lambda1)")
TOP_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "registers",
    "embeddings.position_embeddings": "pos_embed",
} | {
    f"{theirs}.{part}": f"{ours}.{part}"
    for theirs, ours in (
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("layernorm", "mlp_head.0"),
        ("classifier", "mlp_head.1"),
        ("cls_classifier", "mlp_head.1"),
        ("distillation_classifier", "dist_head"),
    )
    for part in ("weight", "bias")
}
LAYER_NAMES = {
    "layernorm_before": "norm1",
    "norm1": "norm1",
    "layernorm_after": "norm2",
    "norm2": "norm2",
    "attention.output.dense": "self_attn.out_proj",
    "attention.o_proj": "self_attn.out_proj",
    "intermediate.dense": "linear1",
    "mlp.fc1": "linear1",
    "output.dense": "linear2",
    "mlp.fc2": "linear2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}
FIRST_QUERIES = {
    "encoder.layer.0.attention.attention.query.weight",
    "encoder.layer.0.attention.q_proj.weight",
    "layers.0.attention.q_proj.weight",
}
QUERY_KEY_VALUE = {
    "attention.attention.query": 0,
    "attention.q_proj": 0,
    "attention.attention.key": 1,
    "attention.k_proj": 1,
    "attention.attention.value": 2,
    "attention.v_proj": 2,
}
# Tensors that the classifier does not read, and the mask token, which only pretraining uses.
UNUSED = re.compile(r"pooler\..*|embeddings\.mask_token")
SOURCE = "the Hugging Face checkpoint"


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a ViT, DeiT or DINOv2 of `transformers`."""
    names = {PREFIX.sub("", key, count=1) for key in state}
    return "embeddings.patch_embeddings.projection.weight" in names and not FIRST_QUERIES.isdisjoint(names)


def from_hugging_face(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    num_heads: int | None = None,
    eps: float | None = None,
    activation: Activation | None = None,
) -> tuple[dict[str, Tensor], ModelSpec]:
    """Converts a state dict of `transformers` to ours, with the spec read from its shapes and its `config.json`.

    What the shapes leave open comes from the arguments, then from `config`, then from defaults: heads of 64 channels,
    the eps of the architecture, GELU, a square image. [DIST] without its own classifier becomes a register, and CLS
    absorbs its position if registers have none; both are exact. A model without a classifier, or whose classifier reads
    more than CLS (DINOv2's), gets a head with a single class, all zeros, for surgery to replace. Raises `ModelError`
    for tensors a MiniViT has no place for.
    """
    new, parts = _renamed(state)
    config = config or {}
    spec = _read_spec(new, config, num_heads, eps, activation)
    if missing := {(layer, number, "weight") for layer in range(spec.depth) for number in range(3)} - parts.keys():
        raise ModelError(f"{SOURCE}: layer {min(missing)[0]} has no query, key or value; give the whole file")
    no_bias = torch.zeros(spec.embed_dim)
    for layer in range(spec.depth):
        for part in ("weight", "bias"):
            three = [parts.get((layer, number, part), no_bias) for number in range(3)]
            new[f"transformer.layers.{layer}.self_attn.in_proj_{part}"] = torch.cat(three)
    if "dist_token" in new and not spec.tokens.dist:
        new["registers"] = new.pop("dist_token")
    if not spec.tokens.positions_cover_prefix:
        new["cls_token"] = new["cls_token"] + new["pos_embed"][:, :1]
        new["pos_embed"] = new["pos_embed"][:, 1:].contiguous()
    if "mlp_head.1.weight" not in new:
        new |= {"mlp_head.1.weight": torch.zeros(1, spec.embed_dim), "mlp_head.1.bias": torch.zeros(1)}
    model = ModelSpec.classifier(spec, len(new["mlp_head.1.bias"]))
    check_state(new, model, SOURCE)
    return new, model


def _renamed(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[tuple[int, int, str], Tensor]]:
    """Tensors under our names, and separately those of query, key and value by (layer, 0 to 2, weight or bias)."""
    new: dict[str, Tensor] = {}
    parts: dict[tuple[int, int, str], Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        name = PREFIX.sub("", key, count=1)
        layer = LAYER.fullmatch(name)
        if name in TOP_NAMES:
            new[TOP_NAMES[name]] = tensor
        elif layer and layer[2] in LAYER_NAMES:
            part = "gamma" if layer[3] == "lambda1" else layer[3]
            new[f"transformer.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.{part}"] = tensor
        elif layer and layer[2] in QUERY_KEY_VALUE:
            parts[int(layer[1]), QUERY_KEY_VALUE[layer[2]], layer[3]] = tensor
        elif not UNUSED.fullmatch(name):
            unknown.append(key)
    refuse_unplaced(SOURCE, unknown)
    dim = new["patch_embed.proj.weight"].shape[0] if "patch_embed.proj.weight" in new else 0
    head = new.get("mlp_head.1.weight")
    if head is not None and head.shape[1] == 2 * dim and not head[:, dim:].any():
        new["mlp_head.1.weight"] = head[:, :dim].contiguous()  # DINOv2's, with zero weights for the mean of the patches
    elif head is not None and head.shape[1] != dim:
        log.warning("%s: its classifier reads %d channels besides CLS and is left out", SOURCE, head.shape[1] - dim)
        del new["mlp_head.1.weight"], new["mlp_head.1.bias"]
    return new, parts


def _read_spec(
    new: Mapping[str, Tensor],
    config: Mapping[str, Any],
    num_heads: int | None,
    eps: float | None,
    activation: Activation | None,
) -> ViTSpec:
    for name in ("patch_embed.proj.weight", "pos_embed", "cls_token", "transformer.layers.0.linear1.weight"):
        if name not in new:
            raise ModelError(f"{SOURCE}: found no tensor for {name!r}; give the model's whole file")
    dim, channels, height, width = new["patch_embed.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[2]) for key in new if key.startswith("transformer.layers."))
    registers = new.get("registers")
    has_dist, has_dist_head = "dist_token" in new, "dist_head.weight" in new
    gamma = new.get("transformer.layers.0.ls1.gamma")
    return ViTSpec(
        variant="hugging_face",
        channels=channels,
        grid=_grid(new["pos_embed"].shape[1] - 1 - int(has_dist), (height, width), config),
        patch=(height, width),
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads or config.get("num_attention_heads") or max(dim // HEAD_WIDTH, 1),
        mlp_dim=new["transformer.layers.0.linear1.weight"].shape[0],
        activation=activation or config.get("hidden_act", "gelu"),
        eps=eps or config.get("layer_norm_eps") or (EPS if gamma is None else DINOV2_EPS),
        tokens=TokenSchema(
            dist=has_dist_head,
            registers=int(has_dist and not has_dist_head) + (0 if registers is None else registers.shape[1]),
            positions_cover_prefix=registers is None,
        ),
        layer_scale=None if gamma is None else gamma.mean().item(),
    )


def _grid(patches: int, patch: Pair, config: Mapping[str, Any]) -> Pair:
    size = config.get("image_size")
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")]
    sides = [size, size] if isinstance(size, int) else size
    if isinstance(sides, (list, tuple)) and len(sides) == 2 and all(isinstance(side, int) for side in sides):
        grid = sides[0] // patch[0], sides[1] // patch[1]  # `transformers` ignores the remainder of an image
        if grid[0] * grid[1] == patches:
            return grid
    side = math.isqrt(patches)
    if side * side != patches:
        raise ModelError(
            f"{SOURCE}: its {patches} patch positions do not form a square grid; keep its config.json next to it"
        )
    return side, side
