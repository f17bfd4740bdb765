"""Verifies the files of a model's folder against a manifest of their hashes."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.files import hash_file, write_json

MANIFEST = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path, names: list[str]) -> None:
    """Write `folder/manifest.json` with the size and SHA-256 of the named files."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)} for name in names}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def check_files(folder: Path) -> None:
    """Raise `ModelError`, naming the file, if one in the manifest is missing or changed.

    A folder without a manifest, from an earlier version, passes.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        files = {
            name: (record["bytes"], record["sha256"]) for name, record in json.loads(path.read_text())["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: cannot be read ({error!r}); export the model again") from None
    for name, (size, digest) in files.items():
        file = folder / name
        if not file.is_file():
            raise ModelError(f"{file}: missing, but {MANIFEST} lists it; export the model again")
        if file.stat().st_size != size or hash_file(file) != digest:
            raise ModelError(f"{file}: does not match its SHA-256 in {MANIFEST}; export the model again")
