"""CLIP's vision tower, in the layout of OpenAI and open_clip; the head is its projection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.export.files import inexpressible_settings
from pipeline.files import write_json, write_whole
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.clip_bridge import to_clip
from pipeline.models.resizing import to_clip_config
from pipeline.models.spec import ViTSpec
from pipeline.models.weights_file import save_tensors

LIBRARY = "open_clip"
USE = """`model.safetensors` uses the names of OpenAI's and open_clip's image tower (`visual.*`), `config.json` has its
settings. `open_clip.model.VisionTransformer` loads it without the prefix; `minivit` stages can start from it."""


def write(bundle: Bundle, folder: Path) -> Path:
    """Write `folder/model.safetensors` and `folder/config.json` in open_clip's terms; returns the weights' path.

    Raises `ModelError` if CLIP's tower cannot hold this model.
    """
    spec = bundle.spec.backbone
    tensors = to_clip(bundle.state, bundle.spec)
    config: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": bundle.spec.num_classes,
            "quick_gelu": spec.activation == "quick_gelu",
            "vision_cfg": vision_config(spec),
        },
        "preprocess_cfg": preprocess_config(bundle.preprocess),
    }
    write_json(folder / "config.json", config | inexpressible_settings(bundle.preprocess))
    return write_whole(folder / "model.safetensors", lambda path: save_tensors(path, tensors))


def vision_config(spec: ViTSpec) -> dict[str, Any]:
    """An image tower in open_clip's terms."""
    return {
        "image_size": list(spec.image_size),
        "patch_size": spec.patch[0] if spec.patch[0] == spec.patch[1] else list(spec.patch),
        "layers": spec.depth,
        "width": spec.embed_dim,
        "head_width": spec.embed_dim // spec.num_heads,
        "mlp_ratio": spec.mlp_dim / spec.embed_dim,
    }


def preprocess_config(preprocess: Preprocess) -> dict[str, Any]:
    """The preparation of an image in open_clip's terms."""
    return {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        **to_clip_config(preprocess.eval, preprocess.background),
    }


def notes(bundle: Bundle) -> list[str]:
    """What the format cannot express: nothing."""
    return []
