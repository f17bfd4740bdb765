"""A bundle: a folder with everything needed to use a model.

It holds `model.safetensors`, `model.json` and, for a model that reads text, `tokenizer.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config.class_names import normalise_class_name
from pipeline.config.data import SQUASH, WHITE, Color, PlainConfig
from pipeline.errors import ModelError
from pipeline.files import sync
from pipeline.models.constants import constant
from pipeline.models.heads.text_tower.shape import text_length
from pipeline.models.model_spec import ModelSpec
from pipeline.models.resizing import plain_config
from pipeline.models.spec import Pair
from pipeline.models.state import check_state
from pipeline.models.weights_file import save_tensors
from pipeline.text.tokenizer import Tokenizer, load_tokenizer

WEIGHTS, DESCRIPTION, TOKENIZER = "model.safetensors", "model.json", "tokenizer.json"
FORMAT_VERSION = 2  # version 1 held only a classifier's backbone and its number of classes


@dataclass(frozen=True)
class Preprocess:
    """How images become the model's input: `image_size` (height, width) px, then (value / 255 - mean) / std.

    Transparent pixels show `background`, red, green and blue in 0 to 255; grey models take its luminance. `eval` holds
    the resizing without random augmentation; `tokenizer` is None unless the model reads text.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    image_size: Pair
    background: Color = WHITE
    eval: PlainConfig = SQUASH
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ModelError(
                    f"preprocess.{name}: found {len(values)} numbers for {self.channels} channel(s); give one per "
                    f"channel (`datasets.NAME.{name}`)"
                )
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ModelError(
                f"preprocess.background: found {list(self.background)}, expected red, green and blue, each 0 to 255"
            )
        if min(self.std) <= 0:
            raise ModelError(f"preprocess.std: found {min(self.std)}, expected values above 0")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`. Raises `ModelError` for invalid values, `KeyError` and the like for broken data."""
        return cls(
            tuple(raw["mean"]),
            tuple(raw["std"]),
            raw["channels"],
            (raw["image_size"][0], raw["image_size"][1]),
            tuple(raw.get("background", WHITE)),
            plain_config(raw.get("eval", {})),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data without the tokenizer; `eval` holds only non-default settings."""
        described = asdict(replace(self, tokenizer=None))
        del described["eval"], described["tokenizer"]
        evaluation = self.eval.model_dump(exclude_defaults=True)
        return described | ({"eval": evaluation} if evaluation else {})

    def normalise(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 [B, C, H, W] -> `dtype` [B, C, H, W], on the images' device."""
        mean, std = (constant(values, images.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images.float() / 255).sub_(mean).div_(std).to(dtype)


@dataclass(frozen=True)
class Bundle:
    """A saved model. `classes` are label names in the order of the logits, or None; `provenance` is free-form.

    `task_settings` are the task's settings for evaluation and prediction.
    """

    state: dict[str, Tensor]
    spec: ModelSpec
    preprocess: Preprocess
    classes: list[str] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    task_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.classes is not None:
            object.__setattr__(self, "classes", [normalise_class_name(name) for name in self.classes])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it, complete or not at all, replacing an older one; returns its folder.

        Raises `ModelError` if the state or the classes do not fit the spec.
        """
        folder = Path(folder)
        check_state(self.state, self.spec, "the state to be saved")
        _check_description(self.spec, self.preprocess, self.classes, str(folder))
        description = describe(self.spec, self.preprocess, self.classes, self.provenance)
        if self.task_settings:
            description["task_settings"] = self.task_settings
        place = folder.resolve()  # "." has no name to derive the draft's from
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        draft.mkdir()
        try:
            save_tensors(draft / WEIGHTS, self.state)
            (draft / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
            if self.preprocess.tokenizer:
                (draft / TOKENIZER).write_text(self.preprocess.tokenizer.content, encoding="utf-8")
            for file in draft.iterdir():
                sync(file)
            _replace_folder(draft, place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return folder


def describe(
    spec: ModelSpec, preprocess: Preprocess, classes: Sequence[str] | None, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Content of `model.json`, stored next to a bundle's weights or an exported graph."""
    return {
        "format_version": FORMAT_VERSION,
        "spec": spec.to_dict(),
        "preprocess": preprocess.to_dict(),
        "classes": None if classes is None else list(classes),
        "provenance": provenance,
    }


def load_bundle(folder: str | os.PathLike[str], *, weights: bool = True) -> Bundle:
    """Read a bundle; without `weights`, its state is empty.

    Raises `ModelError`, naming the file that is missing, unreadable or does not fit.
    """
    folder = Path(folder)
    described = _read_description(folder)
    if not weights:
        return described
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS}: cannot be read ({error}); export the model again") from error
    check_state(state, described.spec, str(folder / WEIGHTS))
    return replace(described, state=state)


def _read_description(folder: Path) -> Bundle:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ModelError(f"{folder}: found no {DESCRIPTION}; give the folder of an exported model")
    try:
        raw = json.loads(path.read_text())
        spec = ModelSpec.from_dict(raw["spec"])
        preprocess = Preprocess.from_dict(raw["preprocess"])
        classes, provenance, version = raw["classes"], raw["provenance"], raw["format_version"]
        task_settings = dict(raw.get("task_settings", {}))
    except (json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{path}: not a model description ({error!r}); export the model again") from error
    if version not in (1, FORMAT_VERSION):
        raise ModelError(
            f"{path}: found format version {version}, but this version of the package reads 1 to {FORMAT_VERSION}"
        )
    _check_description(spec, preprocess, classes, str(path))
    if (length := text_length(spec.heads)) is not None:
        preprocess = replace(preprocess, tokenizer=load_tokenizer(folder / TOKENIZER, length))
    return Bundle({}, spec, preprocess, classes, provenance, task_settings)


def check_shapes(folder: Path, spec: ModelSpec) -> None:
    """Raise `ModelError` as `load_bundle` does, from names and shapes alone, without reading the weights."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); export the model again") from error
    check_state(shapes, spec, str(path))


def _check_description(spec: ModelSpec, preprocess: Preprocess, classes: Sequence[str] | None, source: str) -> None:
    if preprocess.channels != (channels := spec.backbone.channels):
        raise ModelError(f"{source}: preprocesses to {preprocess.channels} channels, but the model takes {channels}")
    if classes is not None and len(classes) != spec.num_classes:
        raise ModelError(f"{source}: names {len(classes)} classes, but the model's head has {spec.num_classes}")


def _replace_folder(draft: Path, folder: Path) -> None:
    """Replace `folder` by `draft`; a rename cannot replace a non-empty folder, so the old one is moved aside first."""
    if not folder.exists():
        os.replace(draft, folder)
    else:
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
        os.replace(folder, aside)
        os.replace(draft, folder)
        shutil.rmtree(aside)
    sync(folder.parent)
