"""The manifest that makes a folder a checkpoint: every file with size and SHA-256, and the meaning of the state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from pipeline.checkpoints.storage import Storage
from pipeline.errors import CheckpointError

FORMAT = 2
NAME = "manifest.json"
HASH_THREADS = 8  # files of a checkpoint verified in parallel; hashing releases the GIL


class NewerFormat(CheckpointError):
    """A checkpoint written by a later version of this package: skipping it would lose its steps."""


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint, by its name in the folder."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class MeterState:
    """Running sums of the metrics since the last report; `sums` [rank][metric]."""

    steps: int
    skipped: int
    sums: list[list[float]]


@dataclass(frozen=True)
class Manifest:
    """The content of a committed checkpoint."""

    step: int
    slots: int  # position in the stream: samples consumed
    world_size: int
    zero_stage: int
    digest: str  # of the stage's inputs
    spec: dict[str, Any]
    shapes: dict[str, list[int]]  # of every parameter and buffer
    files: list[FileRecord]
    metrics: dict[str, float]  # from a validation of exactly these weights; empty if there was none at this step
    window: MeterState
    run_ids: dict[str, str] = field(default_factory=dict)  # the MLflow runs that it belongs to
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.files)


def _hash(file: BinaryIO) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def commit_manifest(storage: Storage, folder: str, manifest: Manifest) -> None:
    """Commit a folder whose files are durable. If interrupted, leaves a complete manifest or none."""
    storage.put(f"{folder}/{NAME}", (json.dumps(asdict(manifest), indent=1) + "\n").encode())


def read_manifest(storage: Storage, folder: str) -> Manifest:
    """The manifest of a checkpoint folder, without checking its files.

    Raises `CheckpointError` if there is none (the checkpoint was never committed) or it cannot be read, `NewerFormat`
    if a later version wrote it.
    """
    where = storage.url(f"{folder}/{NAME}")
    try:
        with storage.open(f"{folder}/{NAME}") as file:
            raw = json.loads(file.read())
    except FileNotFoundError:
        raise CheckpointError(f"{storage.url(folder)} has no {NAME}: it was never committed") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{where} cannot be read: it is not a JSON object")
    found = raw.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise NewerFormat(
            f"{where} has format {found}, but this version reads format {FORMAT}; resume with the later version that "
            f"wrote it, or move {storage.url(folder)} away to resume without it"
        )
    if found != FORMAT:
        raise CheckpointError(
            f"{where} has format {found}, but this version reads format {FORMAT}; use the version that wrote it"
        )
    return _parse(raw, where)


def _parse(raw: Mapping[str, Any], where: str) -> Manifest:
    try:
        files = [FileRecord(**record) for record in raw["files"]]
        return Manifest(**{**raw, "files": files, "window": MeterState(**raw["window"])})
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{where} has missing or unknown fields: {error}") from None


def verify_checkpoint(storage: Storage, folder: str) -> Manifest:
    """The manifest of a checkpoint. Raises `CheckpointError` unless every file is present, complete and unchanged."""
    manifest = read_manifest(storage, folder)
    sizes = storage.files(folder)
    for record in manifest.files:
        path = f"{folder}/{record.name}"
        if sizes.get(path) != record.bytes:
            found = f"has {sizes[path]} bytes" if path in sizes else "is missing"
            raise CheckpointError(f"{storage.url(path)} {found}, but the manifest says {record.bytes}")
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        for _ in pool.map(lambda record: _verify_hash(storage, f"{folder}/{record.name}", record), manifest.files):
            pass
    return manifest


def _verify_hash(storage: Storage, path: str, record: FileRecord) -> None:
    try:
        with storage.open(path) as file:
            found = _hash(file)
    except OSError as error:
        raise CheckpointError(f"{storage.url(path)} cannot be read: {error}") from None
    if found != record.sha256:
        raise CheckpointError(
            f"{storage.url(path)} does not match the SHA-256 in its manifest: its content has changed"
        )
