"""Export formats by name. A format is a file here and a row in `FORMATS`, which spares plans the format's libraries."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config.export import GraphConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.export.limits import check_hf_clip, check_hf_images, check_open_clip, check_opset
from pipeline.models.expressible import check_clip, check_timm, hf_layout

if TYPE_CHECKING:
    from pipeline.config.data import PlainConfig
    from pipeline.export.story import Story
    from pipeline.models.bundle import Bundle
    from pipeline.models.model_spec import ModelSpec
    from pipeline.models.spec import Pair


class Format(NamedTuple):
    """A row of the table: the module with `write(bundle, folder) -> Path`, imported when used.

    `write` always leaves `files` in the folder, and for some models `others`; it returns the file or folder that people
    load. A format that cannot hold every model has a `check`, and one that cannot express every way of resizing images
    to a size `check_images`: both raise `ModelError`, and need no torch. `graph` formats hold operators: their `write`
    also takes a `GraphConfig`, and `check_graph` raises `ModelError` if the packages cannot run what it asks for.
    `packages` come with the extra of the format's name in pyproject.toml.

    For the model card, a module has LIBRARY, the Hub's name of the library or None; USE, Markdown with `{folder}` for
    the export's name; and `notes(bundle)`, a sentence for each thing that the format loses.
    """

    module: str
    files: tuple[str, ...]
    check: Callable[[ModelSpec], object] | None = None
    check_images: Callable[[PlainConfig, Pair], None] | None = None
    graph: bool = False
    check_graph: Callable[[GraphConfig], None] | None = None
    packages: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


COMMON = ("README.md", "manifest.json")  # in every export

FORMATS = {
    "safetensors": Format("to_safetensors", files=("model.json", "model.safetensors"), others=("tokenizer.json",)),
    "timm": Format("to_timm", files=("config.json", "model.safetensors"), check=check_timm),
    "hf": Format(
        "to_hf",
        files=("config.json", "model.safetensors", "preprocessor_config.json"),
        check=hf_layout,
        check_images=check_hf_images,
    ),
    "clip": Format("to_clip", files=("config.json", "model.safetensors"), check=check_clip),
    "open-clip": Format(
        "to_open_clip",
        files=("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        check=check_open_clip,
    ),
    "hf-clip": Format(
        "to_hf_clip",
        files=(
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        check=check_hf_clip,
    ),
    "onnx": Format(
        "to_onnx",
        files=("model.json", "model.onnx"),
        graph=True,
        check_graph=check_opset,
        packages=("onnx", "onnxscript", "onnxruntime"),
        others=("text.onnx", "tokenizer.json", "tokenizer_config.json"),
    ),
    "torch-export": Format(
        "to_torch_export",
        files=("model.json", "model.pt2"),
        graph=True,
        others=("text.pt2", "tokenizer.json", "tokenizer_config.json"),
    ),
}


def export(
    name: str,
    bundle: Bundle,
    out: str | os.PathLike[str],
    graph: GraphConfig | None = None,
    story: Story | None = None,
) -> Path:
    """Write a bundle in a format into the folder `out`, created if needed; returns the file or folder to distribute.

    `graph` configures formats that hold operators, `story` is the model card's content. Also writes that card, and a
    manifest of all other files with their SHA-256. Replaces an earlier export in the same format. Raises `ConfigError`
    and `ModelError` as `check_format`, `check_model` and `check_out` do.
    """
    from pipeline.export.card import write_card
    from pipeline.export.story import Story
    from pipeline.models.integrity import MANIFEST, write_manifest
    from pipeline.models.tracing import CALLING_MODULES

    check_format(name, graph)
    check_model(name, bundle.spec, bundle.preprocess.eval)
    check_out(name, Path(out))
    how = (graph or GraphConfig(),) if FORMATS[name].graph else ()
    folder, module = Path(out).absolute(), _module(name)  # absolute: a bundle may replace the working directory
    (folder / MANIFEST).unlink(missing_ok=True)
    with CALLING_MODULES:
        path: Path = module.write(bundle, Path(out), *how)
    written = (*FORMATS[name].files, *FORMATS[name].others)
    write_manifest(folder, [file for file in written if (folder / file).is_file()])
    write_card(module, bundle, folder, story or Story())
    return path


def check_format(name: str, graph: GraphConfig | None = None) -> None:
    """Raise `ConfigError` for an unknown format, `ModelError` if packages are missing or cannot run such a graph."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}? Allowed: " if near else "allowed: "
        raise ConfigError(f"format: {name!r} is not an export format; {hint}{', '.join(FORMATS)}")
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(f"format: {name} needs the package {missing[0]}; run `pip install 'minivit-pipeline[{name}]'`")
    if check := FORMATS[name].check_graph:
        check(graph or GraphConfig())


def check_model(name: str, spec: ModelSpec, how: PlainConfig | None = None) -> None:
    """Raise `ModelError` for a model that a known format cannot hold, naming the field and the formats that can.

    `how` is how images are brought to the model's size, if known.
    """
    if fault := _fault(name, spec, how):
        others = [other for other in FORMATS if not _fault(other, spec, how)]
        raise ModelError(f"{fault}; {', '.join(others[:-1])} and {others[-1]} can hold this model")


def _fault(name: str, spec: ModelSpec, how: PlainConfig | None) -> str | None:
    """Why a format cannot hold a model."""
    form = FORMATS[name]
    try:
        if form.check:
            form.check(spec)
        if form.check_images and how is not None:
            form.check_images(how, spec.backbone.image_size)
    except ModelError as error:
        return str(error)
    return None


def check_out(name: str, out: Path) -> None:
    """Raise `ModelError` unless a folder is new, empty, or holds nothing but an export in this format."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ModelError(f"{out}: found a file, expected a folder to export to")
    draft = r"(\.[0-9a-f]{8}-)?"  # prefix of a file left by a killed export
    ours = re.compile(
        draft + "(" + "|".join(map(re.escape, (*FORMATS[name].files, *FORMATS[name].others, *COMMON))) + ")"
    )
    others = sorted(path.name for path in out.iterdir() if not ours.fullmatch(path.name))
    if others:
        raise ModelError(
            f"{out}: found {others[0]!r}, which is not part of a {name} export; give a new or empty folder"
        )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{FORMATS[name].module}")
