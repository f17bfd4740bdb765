"""Export formats by name. A new format is a new file here and a row in `FORMATS`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle
    from pipeline.models.spec import ViTSpec


class Format(NamedTuple):
    """A row of the table: the module with `write(bundle, folder) -> Path`, imported when used.

    `narrow` formats cannot hold every model: their modules have `check(spec)` too. `packages` come with the extra of
    the format's name.
    """

    module: str
    narrow: bool = False
    packages: tuple[str, ...] = ()


FORMATS = {
    "safetensors": Format("to_safetensors"),
    "timm": Format("to_timm", narrow=True),
    "clip": Format("to_clip", narrow=True),
    "onnx": Format("to_onnx", packages=("onnx", "onnxscript")),
    "torch-export": Format("to_torch_export"),
}


def export(name: str, bundle: Bundle, out: str | os.PathLike[str]) -> Path:
    """Write a bundle in a format into the folder `out`, made if need be; returns the file or folder to hand on.

    Raises `ModelError` as `check_format` and `check_model` do.
    """
    check_format(name)
    check_model(name, bundle.spec)
    path: Path = _module(name).write(bundle, Path(out))
    return path


def check_format(name: str) -> None:
    """Raise `ModelError` for an unknown format (it lists the known ones), and for one whose packages are missing."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ModelError(f"format: {name!r} is not an export format; {hint}Known are {', '.join(FORMATS)}")
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(f"format: {name} needs the package {missing[0]}; pip install 'minivit-pipeline[{name}]'")


def check_model(name: str, spec: ViTSpec) -> None:
    """Raise `ModelError` for a model that a known format cannot hold, naming the field."""
    if FORMATS[name].narrow:
        _module(name).check(spec)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{FORMATS[name].module}")
