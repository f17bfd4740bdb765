"""The manifest that makes a folder a checkpoint: every file with its size and SHA-256, and what the state means."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint, relative to its folder."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint holds."""

    step: int
    slots: int  # position of the stream: samples consumed
    world_size: int
    zero_stage: int
    digest: str  # of the stage's inputs
    spec: dict[str, Any]
    files: list[FileRecord]
    metrics: dict[str, float]
    format: int = FORMAT


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(folder: Path, path: Path) -> FileRecord:
    return FileRecord(str(path.relative_to(folder)), path.stat().st_size, hash_file(path))


def payload_files(folder: Path) -> list[Path]:
    """The files a manifest must vouch for, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(NAME))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit: make the files durable, then the manifest, by an atomic rename within the same folder."""
    for record in manifest.files:
        _sync(folder / record.path)
    temporary = folder / (NAME + ".tmp")
    temporary.write_text(json.dumps(asdict(manifest), indent=1))
    _sync(temporary)
    temporary.rename(folder / NAME)
    _sync(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder, without checking its files.

    Raises `CheckpointError` if there is none (the checkpoint was never committed), if it cannot be read, or if a newer
    version of the format wrote it.
    """
    path = folder / NAME
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {NAME}: it was never committed") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} cannot be read: it holds no JSON object")
    if raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {raw.get('format')}, this version reads {FORMAT}; use the version that wrote it"
        )
    try:
        return Manifest(**{**raw, "files": [FileRecord(**record) for record in raw["files"]]})
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path} lacks or has unknown fields: {error}") from None


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose every file is there, whole and unchanged; else `CheckpointError`."""
    manifest = read_manifest(folder)
    for record in manifest.files:
        path = folder / record.path
        size = path.stat().st_size if path.is_file() else None
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointError(f"{path} {found}, the manifest says {record.bytes}")
        if hash_file(path) != record.sha256:
            raise CheckpointError(f"{path} does not have the SHA-256 its manifest says: its content was changed")
    return manifest
