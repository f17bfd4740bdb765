"""Converts settings for resizing images to a model's size: ours, timm's, Hugging Face's and open_clip's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipeline.config.data import Color, PlainConfig
from pipeline.errors import ModelError

CROP_MODES = {"center": "shorter", "squash": "squash", "border": "pad"}  # of timm
RESIZE_MODES = {"shortest": "shorter", "squash": "squash", "longest": "pad"}  # of open_clip
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # indexed by Pillow's constants
SHORTEST_EDGE = ("CLIP", "Bit")  # processors of transformers that take one number for the shorter side


def plain_config(raw: Mapping[str, Any]) -> PlainConfig:
    """Parses the settings from plain data. Raises `ModelError` for unknown settings and invalid values."""
    try:
        return PlainConfig(**raw)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(map(str, first["loc"]))
        raise ModelError(f"eval.{setting}: found {first['input']!r}; {first['msg']}") from None


def from_timm_config(config: Mapping[str, Any]) -> PlainConfig:
    """The evaluation transform of timm's `pretrained_cfg`. Raises `ModelError` for unsupported values."""
    mode = config.get("crop_mode") or "center"
    return plain_config(
        {
            "resize": CROP_MODES.get(mode, mode),
            "crop_pct": config.get("crop_pct") or 0.875,
            "interpolation": config.get("interpolation") or "bicubic",
        }
    )


def to_timm_config(how: PlainConfig) -> dict[str, Any]:
    """The resizing part of a `pretrained_cfg`; timm pads with the mean, and has no `auto`."""
    mode = next(theirs for theirs, ours in CROP_MODES.items() if ours == how.resize)
    return {"crop_mode": mode, "crop_pct": how.crop_pct, "interpolation": _without_auto(how)}


def from_clip_config(config: Mapping[str, Any]) -> PlainConfig:
    """The resizing of open_clip's `preprocess_cfg`. Raises `ModelError` for unsupported values."""
    mode = config.get("resize_mode") or "shortest"
    resize, interpolation = RESIZE_MODES.get(mode, mode), config.get("interpolation") or "bicubic"
    return plain_config({"resize": resize, "interpolation": interpolation})


def to_clip_config(how: PlainConfig, background: Color) -> dict[str, Any]:
    """The resizing part of a `preprocess_cfg`; open_clip has neither `crop_pct` nor `auto`."""
    mode = next(theirs for theirs, ours in RESIZE_MODES.items() if ours == how.resize)
    fill = {"fill_color": list(background)} if how.resize == "pad" else {}
    return {"resize_mode": mode, "interpolation": _without_auto(how), **fill}


def from_hugging_face_config(settings: Mapping[str, Any]) -> PlainConfig:
    """The resizing of a `preprocessor_config.json` of `transformers`; our default if it is empty or does not resize.

    Raises `ModelError` for sizes that are neither height and width nor a shorter side, and for unknown filters.
    """
    if not settings or not settings.get("do_resize", True):
        return PlainConfig()
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    by_shorter, deit = kind.startswith(SHORTEST_EDGE), kind.startswith("DeiT")
    resample = settings.get("resample")
    resample = (3 if by_shorter or deit else 2) if resample is None else resample
    if resample not in range(len(RESAMPLE)):
        raise ModelError(f"resample: found {resample!r}, expected 0 to {len(RESAMPLE) - 1}")
    size = settings.get("size") or (256 if deit else 224)
    if isinstance(size, int):
        size = {"shortest_edge" if by_shorter else "height": size}
    shorter = isinstance(size, Mapping) and "shortest_edge" in size
    crop_pct = 1.0
    if settings.get("do_center_crop", by_shorter or deit):
        kept = settings.get("crop_size") or 224
        crop_pct = crop_share(_side("crop_size", kept), _side("size", size))
    resize = "shorter" if shorter else "squash"
    return plain_config({"resize": resize, "crop_pct": crop_pct, "interpolation": RESAMPLE[int(resample)]})


def crop_share(kept: int, resized: int) -> float:
    """The `crop_pct` with which timm's arithmetic resizes to `resized` and keeps `kept`; 1 if `kept` is not smaller."""
    share = min(kept / resized, 1.0)
    while math.floor(kept / share) < resized:
        share = math.nextafter(share, 0.0)
    return share


def _side(key: str, size: Any) -> int:
    """Returns the side of a `transformers` size: a number, or the shortest edge or height of an object."""
    side = size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise ModelError(f"{key}: found {size!r}, expected a number, height and width, or shortest_edge")
    return side


def _without_auto(how: PlainConfig) -> str:
    return "bilinear" if how.interpolation == "auto" else how.interpolation
