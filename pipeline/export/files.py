"""What stands beside an exported graph."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pipeline.files import write_json
from pipeline.models.bundle import DESCRIPTION, FORMAT_VERSION, Bundle


def write_description(bundle: Bundle, folder: Path) -> None:
    """`model.json` beside a graph: what it expects of its input, and what its outputs are called."""
    description = {
        "format_version": FORMAT_VERSION,
        "spec": bundle.spec.to_dict(),
        "preprocess": asdict(bundle.preprocess),
        "classes": bundle.classes,
        "provenance": bundle.provenance,
    }
    write_json(folder / DESCRIPTION, description)
