"""Export formats by name. A new format is a new file here and a row in `FORMATS`."""

from __future__ import annotations

import difflib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle

# Each module has `write(bundle, folder) -> Path`; it is imported when used, as some need optional packages.
FORMATS = {
    "safetensors": "to_safetensors",
    "timm": "to_timm",
    "clip": "to_clip",
    "onnx": "to_onnx",
    "torch-export": "to_torch_export",
}


def export(name: str, bundle: Bundle, out: str | os.PathLike[str]) -> Path:
    """Write a bundle in a format into the folder `out`, made if need be; returns the file or folder to hand on.

    Raises `ModelError` for an unknown format (it lists the known ones) and for a model the format cannot hold.
    """
    module = importlib.import_module(f"{__name__}.{find_format(name)}")
    path: Path = module.write(bundle, Path(out))
    return path


def find_format(name: str) -> str:
    """The module of a format; `ModelError` with the valid names otherwise."""
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name, FORMATS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ModelError(f"format: {name!r} is not an export format; {hint}Known are {', '.join(FORMATS)}")
