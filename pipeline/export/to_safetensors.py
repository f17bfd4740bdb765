"""This package's own format: a bundle folder, for `pipeline.load_model`."""

from __future__ import annotations

from pathlib import Path

from pipeline.models.bundle import Bundle


def write(bundle: Bundle, folder: Path) -> Path:
    """`folder/model.safetensors` and `folder/model.json`; returns the folder."""
    return bundle.save(folder)
