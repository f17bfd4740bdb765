"""Does a state dict fit a spec? If not, say which tensor, or what the checkpoint seems to be instead."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import ViTSpec

# A key that betrays the architecture, and what to call it.
FOREIGN_KEYS = {
    "blocks.0.attn.qkv.weight": "a timm Vision Transformer; start from it with `init_from: timm:...`",
    "vit.embeddings.cls_token": "a Hugging Face ViT; convert it to timm's layout first",
    "vision_model.embeddings.class_embedding": "a CLIP vision tower; convert it to timm's layout first",
    "layer1.0.conv1.weight": "a ResNet",
}


def expected_shapes(spec: ViTSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the state dict of a spec, in order; nothing is allocated."""
    with torch.device("meta"):
        model = MiniViT.from_spec(spec, init="torch")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_state(state: Mapping[str, Tensor], spec: ViTSpec, source: str) -> None:
    """`ModelError` naming the first tensor that is missing, unknown or misshapen; `source` says whose state it is."""
    expected = expected_shapes(spec)
    for key, description in FOREIGN_KEYS.items():
        if key in state:
            raise ModelError(f"{source}: is not a MiniViT; its key {key!r} says it is {description}")
    missing = [name for name in expected if name not in state]
    if missing:
        raise ModelError(f"{source}: lacks the tensor {missing[0]!r} ({len(missing)} missing) that its spec asks for")
    unknown = sorted(state.keys() - expected.keys())
    if unknown:
        raise ModelError(
            f"{source}: holds the tensor {unknown[0]!r} ({len(unknown)} such) that its spec does not know; "
            "the spec belongs to another model"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            found = list(state[name].shape)
            raise ModelError(f"{source}: the tensor {name!r} has shape {found}; its spec asks for {list(shape)}")
