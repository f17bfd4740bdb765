"""Converts weights of an image-text model to CLIP's two towers (Radford et al. 2021); outputs are equal.

The layouts are those of `clip_keys`: `openai`, which open_clip shares, and `hugging_face`, that of `CLIPModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from pipeline.models.clip_bridge import tower_tensors, vision_tensors
from pipeline.models.clip_keys import HUGGING_FACE, OPENAI, ClipLayout
from pipeline.models.expressible import check_tower, text_head
from pipeline.models.heads.text_tower.shape import IMAGE, TEMPERATURE, TEXT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.state import check_state

TEXT_LAYOUTS: dict[str, ClipLayout] = {
    "openai": replace(
        OPENAI,
        prefix="",
        top={
            "token_embedding.weight": "token_embedding.weight",
            "positions": "positional_embedding",
            "norm": "ln_final",
        },
        projection="text_projection",
    ),
    "hugging_face": replace(
        HUGGING_FACE,
        top={
            "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
            "positions": "text_model.embeddings.position_embedding.weight",
            "norm": "text_model.final_layer_norm",
        },
        layer_prefix="text_model.encoder.layers.{}.",
        projection="text_projection.weight",
    ),
}


def to_clip_towers(state: Mapping[str, Tensor], model: ModelSpec, layout: str) -> dict[str, Tensor]:
    """Returns the state dict of both towers. Raises `ModelError` if CLIP cannot express the model."""
    text = text_head(model, "CLIP")
    check_tower(model.backbone)
    check_state(state, model, "the state to convert")
    new = vision_tensors(_as_classifier(state), model.backbone, layout)
    chosen, tower = TEXT_LAYOUTS[layout], _below(state, TEXT)
    new |= tower_tensors(tower, chosen, text.options["depth"])
    matrix = tower["projection.weight"]  # [E, D]
    new[chosen.projection] = matrix if chosen.transposed else matrix.t().contiguous()
    return new | {name: value.reshape(()) for name, value in _below(state, TEMPERATURE).items()}


def _below(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{head}."): value for key, value in state.items() if key.startswith(f"{head}.")}


def _as_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower with its embedding as a classifier's head, the form that `clip_bridge` converts."""
    heads = tuple(f"{head}." for head in (IMAGE, TEXT, TEMPERATURE))
    image = {key: value for key, value in state.items() if not key.startswith(heads)}
    own = _below(state, IMAGE)
    image |= {f"mlp_head.0.{part}": own[f"norm.{part}"] for part in ("weight", "bias")}
    matrix = own["projection.weight"]
    return image | {"mlp_head.1.weight": matrix, "mlp_head.1.bias": matrix.new_zeros(len(matrix))}
