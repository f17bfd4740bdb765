"""Converts weights to the layouts of `transformers`' ViT, DeiT and DINOv2, inverting `hf_bridge`; outputs are equal.

Tensor names are those of files on the hub, which every version reads.

Legend: D width, K classes, P prefix tokens, N patches, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.models.backbone import bare_backbone
from pipeline.models.expressible import HFLayout, hf_layout
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import ViTSpec
from pipeline.models.state import check_state

CLASSIFIERS: dict[HFLayout, str] = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassificationWithTeacher",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
}
BACKBONES: dict[HFLayout, str] = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in grey, as when reading images
# Names within a layer: (ours, ViT's and DeiT's, DINOv2's).
LAYER_NAMES = (
    ("norm1", "layernorm_before", "norm1"),
    ("norm2", "layernorm_after", "norm2"),
    ("self_attn.out_proj", "attention.output.dense", "attention.output.dense"),
    ("linear1", "intermediate.dense", "mlp.fc1"),
    ("linear2", "output.dense", "mlp.fc2"),
)
SCALED = {"ls1": "self_attn.out_proj", "ls2": "linear2"}  # layer scales, and what each can be folded into


def to_hugging_face(
    state: Mapping[str, Tensor], model: ModelSpec, classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns a MiniViT's state under the names of `transformers`, and the matching `config.json`.

    Exact, even where weights change: layer scale is folded into ViT's and DeiT's matrices and positions of registers
    into the registers. A grey model gets three channels, because `transformers` opens all images in colour; its kernel
    weights red, green and blue as the conversion to grey does. Raises `ModelError` as `hf_layout` does.
    """
    layout = hf_layout(model)
    check_state(state, model, "the state to convert")
    classifier = model.is_classifier
    own, spec = (dict(state), model.backbone) if classifier else bare_backbone(state, model)
    prefix = f"{layout}." if classifier else ""
    tensors = {prefix + name: tensor for name, tensor in _embeddings(own, spec, layout).items()}
    for layer in range(spec.depth):
        names = _layer(own, f"transformer.layers.{layer}.", layout)
        tensors |= {f"{prefix}encoder.layer.{layer}.{name}": tensor for name, tensor in names.items()}
    tensors |= {f"{prefix}layernorm.{part}": own[f"mlp_head.0.{part}"] for part in ("weight", "bias")}
    if classifier:
        tensors |= _classifiers(own, layout)
    return tensors, _config(model, spec, layout, classes)


def _embeddings(state: Mapping[str, Tensor], spec: ViTSpec, layout: HFLayout) -> dict[str, Tensor]:
    kernel, prefix = state["patch_embed.proj.weight"], spec.tokens.num_prefix
    if spec.channels == 1:
        kernel = kernel * kernel.new_tensor(LUMA).view(1, 3, 1, 1)
    table = state.get("pos_embed", kernel.new_zeros(1, 0, spec.embed_dim))
    rows = prefix + spec.num_patches
    positions = torch.cat([kernel.new_zeros(1, rows - table.shape[1], spec.embed_dim), table], dim=1)  # [1, P+N, D]
    found = {
        "cls_token": state["cls_token"],
        "patch_embeddings.projection.weight": kernel,
        "patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
    }
    if layout == "deit":
        found["distillation_token"] = state["dist_token"]
    if layout in BACKBONES:
        found["mask_token"] = state.get("mask_token", kernel.new_zeros(1, 1, spec.embed_dim))[0]
        if "registers" in state:  # without positions of their own in DINOv2
            found["register_tokens"] = state["registers"] + positions[:, 1:prefix]
            positions = torch.cat([positions[:, :1], positions[:, prefix:]], dim=1)
    return {f"embeddings.{name}": tensor for name, tensor in (found | {"position_embeddings": positions}).items()}


def _layer(state: Mapping[str, Tensor], prefix: str, layout: HFLayout) -> dict[str, Tensor]:
    dinov2 = layout in BACKBONES
    found = {}
    for part in ("weight", "bias"):
        three = state[f"{prefix}self_attn.in_proj_{part}"].chunk(3)
        for name, tensor in zip(("query", "key", "value"), three, strict=True):
            found[f"attention.attention.{name}.{part}"] = tensor
        for ours, of_vit, of_dinov2 in LAYER_NAMES:
            found[f"{of_dinov2 if dinov2 else of_vit}.{part}"] = state[f"{prefix}{ours}.{part}"]
    for scale, scaled in SCALED.items():
        gamma = state.get(f"{prefix}{scale}.gamma")
        if dinov2:
            ones = torch.ones_like(state[f"{prefix}norm1.weight"])
            found[f"layer_scale{scale[-1]}.lambda1"] = ones if gamma is None else gamma
        elif gamma is not None:
            name = next(theirs for ours, theirs, _ in LAYER_NAMES if ours == scaled)
            found[f"{name}.weight"] = found[f"{name}.weight"] * gamma[:, None]
            found[f"{name}.bias"] = found[f"{name}.bias"] * gamma
    return found


def _classifiers(state: Mapping[str, Tensor], layout: HFLayout) -> dict[str, Tensor]:
    weight, bias = state["mlp_head.1.weight"], state["mlp_head.1.bias"]
    if layout == "deit":
        own = {f"distillation_classifier.{part}": state[f"dist_head.{part}"] for part in ("weight", "bias")}
        return {"cls_classifier.weight": weight, "cls_classifier.bias": bias, **own}
    if layout in BACKBONES:  # their classifier also reads the mean of the patches
        weight = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    return {"classifier.weight": weight, "classifier.bias": bias}


def _config(model: ModelSpec, spec: ViTSpec, layout: HFLayout, classes: Sequence[str] | None) -> dict[str, Any]:
    classifier = model.is_classifier
    size, patch = (pair[0] if pair[0] == pair[1] else list(pair) for pair in (spec.image_size, spec.patch))
    config: dict[str, Any] = {
        "architectures": [(CLASSIFIERS if classifier else BACKBONES)[layout]],
        "model_type": layout,
        "hidden_size": spec.embed_dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "hidden_act": spec.activation,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": spec.eps,
        "image_size": size,
        "patch_size": patch,
        "num_channels": 3 if spec.channels == 1 else spec.channels,
        "qkv_bias": True,
        "torch_dtype": "float32",
    }
    if layout in BACKBONES:
        config |= {"mlp_ratio": spec.mlp_dim // spec.embed_dim, "use_swiglu_ffn": False}
        config |= {"layerscale_value": 1.0 if spec.layer_scale is None else spec.layer_scale}
        if spec.tokens.registers:
            config["num_register_tokens"] = spec.tokens.registers
    else:
        config["intermediate_size"] = spec.mlp_dim
    if classifier:
        names = classes or [str(number) for number in range(model.num_classes)]
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
        config["problem_type"] = "single_label_classification"
    return config
