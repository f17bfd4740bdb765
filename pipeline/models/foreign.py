"""Loads foreign weights as a bundle: `timm:NAME`, or a local safetensors file of timm, Hugging Face or CLIP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config.architecture import Activation
from pipeline.config.data import WHITE
from pipeline.config.references import TIMM
from pipeline.errors import ModelError
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.clip_bridge import from_clip
from pipeline.models.clip_keys import find_layout
from pipeline.models.foreign_config import (
    CLIP_MEAN,
    CLIP_STD,
    foreign_class_names,
    hugging_face_normalisation,
    normalisation,
)
from pipeline.models.hf_bridge import from_hugging_face, is_hugging_face
from pipeline.models.model_spec import ModelSpec
from pipeline.models.resizing import from_clip_config, from_hugging_face_config, from_timm_config, plain_config
from pipeline.models.timm_bridge import from_timm

# Optional files next to the weights, which describe them.
CONFIG, PREPROCESSOR, OPEN_CLIP = BESIDE = ("config.json", "preprocessor_config.json", "open_clip_config.json")


def load_foreign(reference: str, *, weights: bool = True, **unspecified: Any) -> Bundle:
    """Returns the model behind `timm:NAME` or the path of a safetensors file, including head and class names.

    timm finds and caches its own weights; NAME may begin with `hf-hub:` or `local-dir:`, as timm allows. Without
    `weights`, the state is empty, and nothing is downloaded. `unspecified` gives `num_heads`, `eps` and `activation`
    for files that do not state them. Pickles are refused because they run code. Raises `ModelError` if the weights do
    not exist or are not a plain Vision Transformer's.
    """
    path = Path(reference)
    if not reference.startswith(TIMM) and _describes_itself(path):
        reference = f"{TIMM}local-dir:{path.parent}"
    if reference.startswith(TIMM):
        place: AbstractContextManager[Any] = nullcontext() if weights else torch.device("meta")
        with place:
            model = _create_timm(reference, pretrained=weights)
        bundle = _from_timm_model(reference, model)
    else:
        bundle = _from_file(path, unspecified)
    return bundle if weights else replace(bundle, state={})


def import_foreign(reference: str, folder: Path, **unspecified: Any) -> Path:
    """Save `load_foreign(reference)` as a bundle in `folder` and return it; never downloads what is not a ViT."""
    if reference.startswith(TIMM):
        load_foreign(reference, weights=False, **unspecified)
    return load_foreign(reference, **unspecified).save(folder)


def _from_file(path: Path, unspecified: Mapping[str, Any]) -> Bundle:
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path}: not a safetensors file, and pickles can run code; convert it with safetensors.torch.save_file"
        )
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); give a whole safetensors file") from error
    config: dict[str, Any] = {}
    clip: dict[str, Any] = {}
    with _named(path):
        if find_layout(state):
            clip = _clip_config(path)
            new, spec = from_clip(state, **unspecified)
        elif is_hugging_face(state):
            config = _read_beside(path, CONFIG)
            new, spec = from_hugging_face(state, config, **unspecified)
        else:
            new, spec = from_timm(state, **unspecified)
    preprocess = _clip_preprocess(path, spec, clip) if clip else _hugging_face_preprocess(path, spec)
    with _named(path.parent / CONFIG):
        classes = foreign_class_names(config.get("id2label"), config.get("label2id"), spec.num_classes)
    return Bundle(new, spec, preprocess, classes, {"source": str(path)})


def _hugging_face_preprocess(path: Path, spec: ModelSpec) -> Preprocess:
    settings = _read_beside(path, PREPROCESSOR)
    with _named(path.parent / PREPROCESSOR):
        mean, std = hugging_face_normalisation(settings, spec.backbone.channels)
        how = from_hugging_face_config(settings)
    return Preprocess(mean, std, spec.backbone.channels, spec.backbone.image_size, eval=how)


def _clip_config(path: Path) -> dict[str, Any]:
    """The open_clip config next to CLIP's weights, as in its hub folders and our exports; empty if there is none."""
    found = (_read_beside(path, name) for name in (OPEN_CLIP, CONFIG))
    return next((config for config in found if isinstance(config.get("preprocess_cfg"), Mapping)), {})


def _clip_preprocess(path: Path, spec: ModelSpec, config: Mapping[str, Any]) -> Preprocess:
    settings = config["preprocess_cfg"]
    with _named(path.parent):
        mean, std = settings.get("mean") or CLIP_MEAN, settings.get("std") or CLIP_STD
        how = plain_config(config["eval"]) if "eval" in config else from_clip_config(settings)
        mean, std = normalisation(mean, std, spec.backbone.channels)
        fill = settings.get("fill_color") or 0 if how.resize == "pad" else WHITE
        background = config.get("background") or ((fill,) * 3 if isinstance(fill, int) else fill)
        return Preprocess(mean, std, spec.backbone.channels, spec.backbone.image_size, tuple(background), how)


@contextmanager
def _named(source: Path | str) -> Iterator[None]:
    """Prefixes errors raised inside with the file or reference they concern."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None


def _read_beside(path: Path, name: str) -> dict[str, Any]:
    """Reads a JSON file next to the weights; empty if there is none."""
    file = path.parent / name
    try:
        described = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON ({error}); fix or remove it") from None
    if not isinstance(described, dict):
        raise ModelError(f"{file}: not a JSON object; fix or remove it")
    return described


def _describes_itself(path: Path) -> bool:
    """Whether a `config.json` in timm's form is next to the weights, as in its hub folders and our exports."""
    config = path.parent / CONFIG
    if path.name != "model.safetensors" or not (path.is_file() and config.is_file()):
        return False
    try:
        return "architecture" in json.loads(config.read_text(encoding="utf-8-sig"))
    except ValueError:
        return False


def _create_timm(reference: str, *, pretrained: bool) -> Any:
    import timm  # slow to import, needed only here

    name = reference.removeprefix(TIMM)
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # from timm, the hub client or its transport
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{reference}: unavailable ({reason.rstrip('.')}); use a name from timm.list_models('vit_*', "
            "pretrained=True), on a machine that can reach huggingface.co or has the weights in its cache (HF_HOME)"
        ) from error


def _convert(reference: str, model: Any) -> tuple[dict[str, Tensor], ModelSpec]:
    try:
        grid, heads = model.patch_embed.grid_size, model.blocks[0].attn.num_heads
        norm = model.norm if hasattr(model.norm, "eps") else model.fc_norm
        activation = _activation(model.blocks[0].mlp.act)
    except (AttributeError, TypeError, IndexError):
        raise ModelError(
            f"{reference}: found a {type(model).__name__}, expected a plain Vision Transformer of timm"
        ) from None
    with _named(reference):
        return from_timm(
            model.state_dict(), grid=(grid[0], grid[1]), num_heads=heads, eps=norm.eps, activation=activation
        )


def _activation(module: torch.nn.Module) -> Activation:
    names: dict[str, Activation] = {"GELU": "gelu", "QuickGELU": "quick_gelu", "ReLU": "relu"}
    try:
        return names[type(module).__name__]
    except KeyError:
        raise ModelError(
            f"the timm checkpoint: a MiniViT does not support its activation {type(module).__name__}"
        ) from None


def _from_timm_model(reference: str, model: Any) -> Bundle:
    state, spec = _convert(reference, model)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    folder = reference.partition("local-dir:")[2]
    own = _read_beside(Path(folder, CONFIG), CONFIG) if folder else {}
    with _named(reference):
        preprocess = _timm_preprocess(spec, config, own)
        classes = _classes(model, spec, config)
    weights = {name: tensor.detach().clone() for name, tensor in state.items()}
    return Bundle(weights, spec, preprocess, classes, {"source": reference})


def _timm_preprocess(spec: ModelSpec, config: Mapping[str, Any], own: Mapping[str, Any]) -> Preprocess:
    """Reads timm's `pretrained_cfg`, and the keys that our exports add for what timm cannot express."""
    mean, std = normalisation(config.get("mean"), config.get("std"), spec.backbone.channels)
    how = plain_config(own["eval"]) if "eval" in own else from_timm_config(config)
    # timm pads with the mean.
    background = own.get("background") or (
        [round(255 * value) for value in (mean * 3)[:3]] if how.resize == "pad" else WHITE
    )
    return Preprocess(mean, std, spec.backbone.channels, spec.backbone.image_size, tuple(background), how)


def _classes(model: Any, spec: ModelSpec, config: Mapping[str, Any]) -> list[str] | None:
    """Names of the head's classes: those of the export, or ImageNet's synsets (n01440764) if timm infers them."""
    if names := config.get("label_names"):
        return foreign_class_names(names, None, spec.num_classes)
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    return foreign_class_names(ImageNetInfo(subset).label_names(), None, spec.num_classes) if subset else None
