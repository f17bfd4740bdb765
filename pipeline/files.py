"""Atomic file writes that survive a power cut."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Wait until the disk holds a file's bytes, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file of the same suffix next to `path`, then move it there atomically and durably.

    A reader sees the old file or the new one, never a partial one, even after a kill or a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        write(draft)
        sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)
    return path


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    text = json.dumps(value, indent=1) + "\n"
    write_whole(path, lambda draft: draft.write_text(text))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def takes_no_files(path: Path) -> str | None:
    """Why a file or its missing parent folders cannot be created; None if they apparently can."""
    folder = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    return None if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) else f"{folder} is not writable"
