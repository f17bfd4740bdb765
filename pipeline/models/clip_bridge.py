"""Converts weights to and from CLIP's vision tower (Radford et al. 2021); outputs are equal.

Two layouts: `openai`, which open_clip shares (`visual.transformer.resblocks...`), and `hugging_face`
(`vision_model.encoder.layers...`). The image embedding is the model's head, with one class per embedding channel.

Legend: D width, E embedding, N patches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config.architecture import Activation
from pipeline.errors import ModelError
from pipeline.models.clip_keys import ATTENTION, LAYOUTS, ClipLayout, find_layout, own_keys, paired_keys
from pipeline.models.expressible import CLIP_EPS, check_clip
from pipeline.models.model_spec import ModelSpec
from pipeline.models.recognise import recognise
from pipeline.models.spec import ViTSpec
from pipeline.models.state import check_state

# Channels per head of open_clip's widest towers, by width; all others have 64.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
# Tensors of Hugging Face's layout outside the vision tower, and those that can be recomputed.
NOT_VISION = re.compile(r"(text_model|text_projection|logit_scale|logit_bias)\b.*|.*\.position_ids")


def from_clip(
    state: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    eps: float | None = None,
    activation: Activation = "quick_gelu",
) -> tuple[dict[str, Tensor], ModelSpec]:
    """Converts CLIP's vision tower to ours, with the spec read from its shapes; drops the text tower.

    The shapes do not determine `num_heads` (default: that of the published sizes), `eps` (default: 1e-5) and
    `activation` (QuickGELU for OpenAI's weights, `gelu` for most of open_clip's). The projection becomes the head; a
    tower without one gets a head with a single class, all zeros. Raises `ModelError` unless this is CLIP's ViT.
    """
    if "embeddings.class_embedding" in state:  # a bare vision model of transformers since version 5
        state = {f"vision_model.{key}": tensor for key, tensor in state.items()}
    found = find_layout(state)
    if found is None:
        sign = recognise(state)
        some = f"{sign[0]!r} suggests {sign[1]}" if sign else f"it contains {', '.join(sorted(state)[:3])}"
        raise ModelError(f"the CLIP checkpoint: found no vision tower in a known layout; {some}")
    layout, prefix = found
    tower = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    spec = _read_spec(tower, layout, num_heads, eps or CLIP_EPS, activation)
    new = _converted(tower, layout, spec)
    model = ModelSpec.classifier(spec, len(new["mlp_head.1.bias"]))
    check_state(new, model, "the CLIP checkpoint")
    return new, model


def _converted(tower: Mapping[str, Tensor], layout: ClipLayout, spec: ViTSpec) -> dict[str, Tensor]:
    """Our tensors from those of a vision tower. Raises `ModelError` for tensors a MiniViT has no place for."""
    keys = paired_keys(layout, spec.depth)
    known = {*keys.values(), *own_keys(layout, spec.depth)}
    unknown = sorted(key for key in tower if key not in known and not NOT_VISION.match(key))
    if unknown:
        raise ModelError(
            f"the CLIP checkpoint: its tensor {unknown[0]!r} does not fit into a MiniViT ({len(unknown)} such); start "
            "from another checkpoint"
        )
    new = {ours: tower[theirs] for ours, theirs in keys.items() if theirs in tower}
    new["cls_token"] = new["cls_token"].reshape(1, 1, -1)
    new["pos_embed"] = new["pos_embed"][None]
    new["patch_embed.proj.bias"] = new["mlp_head.0.bias"].new_zeros(spec.embed_dim)
    projection = tower.get(layout.projection)
    if projection is None:
        projection = new["mlp_head.0.bias"].new_zeros(spec.embed_dim, 1)
    elif layout.transposed:
        projection = projection.t()
    new["mlp_head.1.weight"] = projection.t().contiguous()
    new["mlp_head.1.bias"] = projection.new_zeros(projection.shape[1])
    for layer in range(spec.depth if layout.split else 0):
        own = f"{layout.layer_prefix.format(layer)}{layout.layer[ATTENTION]}"
        for part in ("weight", "bias"):
            parts = [tower[f"{own}.{name}.{part}"] for name in layout.split or ()]
            new[f"transformer.layers.{layer}.{ATTENTION}.in_proj_{part}"] = torch.cat(parts)
    return new


def to_clip(state: Mapping[str, Tensor], model: ModelSpec, layout: str = "openai") -> dict[str, Tensor]:
    """Converts a MiniViT state dict to one of CLIP's layouts, `openai` (under `visual.`) or `hugging_face`.

    CLIP's patch embedding and projection have no bias. The patch bias is added to the positions; the head's bias moves
    through the projection's pseudo-inverse into the preceding norm. Both are exact. Raises `ModelError` if CLIP's tower
    cannot express the model.
    """
    check_clip(model)
    check_state(state, model, "the state to convert")
    return vision_tensors(state, model.backbone, layout)


def vision_tensors(state: Mapping[str, Tensor], spec: ViTSpec, layout: str) -> dict[str, Tensor]:
    """`to_clip` without its checks, for a state whose embedding is a classifier's head."""
    chosen = LAYOUTS[layout]
    new = tower_tensors(state, chosen, spec.depth)
    new[chosen.top["cls_token"]] = state["cls_token"].flatten()
    new[chosen.top["pos_embed"]] = _positions(state, spec)
    weight, bias = state["mlp_head.1.weight"], state["mlp_head.1.bias"]
    new[chosen.projection] = weight if chosen.transposed else weight.t().contiguous()
    if bias.any():
        key = f"{chosen.top['mlp_head.0']}.bias"
        new[key] = new[key] + _through_projection(weight, bias)
    return {chosen.prefix + key: tensor for key, tensor in new.items()}


def tower_tensors(state: Mapping[str, Tensor], layout: ClipLayout, depth: int) -> dict[str, Tensor]:
    """Tensors that a layout takes unchanged, and its query, key and value matrices; without its prefix."""
    new = {theirs: state[ours] for ours, theirs in paired_keys(layout, depth).items() if ours in state}
    for layer in range(depth if layout.split else 0):
        for part in ("weight", "bias"):
            whole = state[f"transformer.layers.{layer}.{ATTENTION}.in_proj_{part}"]
            own = f"{layout.layer_prefix.format(layer)}{layout.layer[ATTENTION]}"
            for name, third in zip(layout.split or (), whole.chunk(3), strict=True):
                new[f"{own}.{name}.{part}"] = third.contiguous()
    return new


def _read_spec(
    tower: Mapping[str, Tensor], layout: ClipLayout, num_heads: int | None, eps: float, activation: Activation
) -> ViTSpec:
    dim, channels, height, width = tower[layout.top["patch_embed.proj.weight"]].shape
    layers = re.compile(re.escape(layout.layer_prefix).replace(r"\{\}", r"(\d+)"))
    depth = 1 + max(int(match[1]) for key in tower if (match := layers.match(key)))
    rows = tower[layout.top["pos_embed"]].shape[0]
    side = math.isqrt(rows - 1)
    if side * side != rows - 1:
        raise ModelError(f"the CLIP checkpoint: found {rows} positions, expected one for CLS and a square grid")
    return ViTSpec(
        variant="clip",
        channels=channels,
        grid=(side, side),
        patch=(height, width),
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads or max(dim // HEAD_WIDTHS.get(dim, 64), 1),
        mlp_dim=tower[layout.layer_prefix.format(0) + layout.layer["linear1"] + ".weight"].shape[0],
        activation=activation,
        eps=eps,
        embed_norm=True,
    )


def _positions(state: Mapping[str, Tensor], spec: ViTSpec) -> Tensor:
    """[N+1, D], with the patch bias added to the patches' rows."""
    bias = state["patch_embed.proj.bias"]
    table = bias.new_zeros(1 + spec.num_patches, spec.embed_dim)
    if "pos_embed" in state:
        table[1 + spec.num_patches - spec.num_positions :] = state["pos_embed"][0].to(table)
    table[1:] += bias
    return table


def _through_projection(weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the shift [D] before a projection [E, D] that equals a bias [E] after it."""
    exact = weight.double()
    shift = torch.linalg.pinv(exact) @ bias.double()
    if not torch.allclose(exact @ shift, bias.double(), atol=1e-6):
        raise ModelError(
            f"model.num_classes: CLIP's projection has no bias, so it cannot express the bias of a head with "
            f"{len(weight)} classes on {weight.shape[1]} channels"
        )
    return shift.to(bias.dtype)
