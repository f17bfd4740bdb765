"""Writing files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pipeline.models.bundle import DESCRIPTION, FORMAT_VERSION, Bundle


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file of the same suffix beside `path`, then rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".draft-{os.getpid()}-{path.name}")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def write_description(bundle: Bundle, folder: Path) -> None:
    """`model.json` beside a graph: what it expects of its input, and what its outputs are called."""
    description = {
        "format_version": FORMAT_VERSION,
        "spec": bundle.spec.to_dict(),
        "preprocess": asdict(bundle.preprocess),
        "classes": bundle.classes,
        "provenance": bundle.provenance,
    }
    write_whole(folder / DESCRIPTION, lambda path: path.write_text(json.dumps(description, indent=1) + "\n"))
