"""Names of tensors in CLIP's two layouts, and ours for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

ATTENTION = "self_attn"


@dataclass(frozen=True)
class ClipLayout:
    """Tensor names of a layout; {} stands for the layer number.

    `top` and `layer` map our keys to its keys. `projection` is [D, E], or [E, D] if `transposed`. `split` names
    separate query, key and value matrices; None if they are one matrix, as ours.
    """

    prefix: str
    first_layer: str
    top: Mapping[str, str]
    layer_prefix: str
    layer: Mapping[str, str]
    projection: str
    transposed: bool
    split: tuple[str, str, str] | None


OPENAI = ClipLayout(
    prefix="visual.",
    first_layer="transformer.resblocks.0.attn.in_proj_weight",
    top={
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj.weight": "conv1.weight",
        "embed_norm": "ln_pre",
        "mlp_head.0": "ln_post",
    },
    layer_prefix="transformer.resblocks.{}.",
    layer={"norm1": "ln_1", "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj", ATTENTION: "attn"},
    projection="proj",
    transposed=False,
    split=None,
)
HUGGING_FACE = ClipLayout(
    prefix="",
    first_layer="vision_model.encoder.layers.0.self_attn.q_proj.weight",
    top={
        "cls_token": "vision_model.embeddings.class_embedding",
        "pos_embed": "vision_model.embeddings.position_embedding.weight",
        "patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
        "embed_norm": "vision_model.pre_layrnorm",
        "mlp_head.0": "vision_model.post_layernorm",
    },
    layer_prefix="vision_model.encoder.layers.{}.",
    layer={
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "linear1": "mlp.fc1",
        "linear2": "mlp.fc2",
        ATTENTION: "self_attn",
    },
    projection="visual_projection.weight",
    transposed=True,
    split=("q_proj", "k_proj", "v_proj"),
)
MODULES = "embed_norm", "mlp_head.0", "norm"  # have a weight and a bias; other entries of `top` are single tensors
LAYOUTS = {"openai": OPENAI, "hugging_face": HUGGING_FACE}


def find_layout(state: Mapping[str, Tensor]) -> tuple[ClipLayout, str] | None:
    """The layout of a state dict and the prefix of its vision tower; None if it is not CLIP's."""
    for layout in LAYOUTS.values():
        for prefix in dict.fromkeys((layout.prefix, "")):
            if prefix + layout.first_layer in state and prefix + layout.top["cls_token"] in state:
                return layout, prefix
    return None


def paired_keys(layout: ClipLayout, depth: int) -> dict[str, str]:
    """Our keys -> the layout's, for tensors taken unchanged, up to a dimension of size one."""
    keys: dict[str, str] = {}
    for ours, theirs in layout.top.items():
        parts = [(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]
        keys |= dict(parts) if ours in MODULES else {ours: theirs}
    for layer in range(depth):
        for ours, theirs in layout.layer.items():
            names = [(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]
            if ours == ATTENTION:
                names = [(f"{ours}.out_proj.{part}", f"{theirs}.out_proj.{part}") for part in ("weight", "bias")]
                if not layout.split:
                    names += [(f"{ours}.in_proj_{part}", f"{theirs}.in_proj_{part}") for part in ("weight", "bias")]
            for own, other in names:
                keys[f"transformer.layers.{layer}.{own}"] = layout.layer_prefix.format(layer) + other
    return keys


def own_keys(layout: ClipLayout, depth: int) -> set[str]:
    """The layout's keys without a one-to-one counterpart."""
    own = {layout.projection}
    for layer in range(depth):
        for name in layout.split or ():
            prefix = f"{layout.layer_prefix.format(layer)}{layout.layer[ATTENTION]}.{name}"
            own |= {f"{prefix}.weight", f"{prefix}.bias"}
    return own
