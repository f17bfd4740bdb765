"""The checkpoints of one stage: their folders, and the newest valid one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.checkpoints.manifest import NAME, Manifest, NewerFormat, read_manifest, verify_checkpoint
from pipeline.checkpoints.storage import Storage
from pipeline.errors import CheckpointError

STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Selection:
    """The checkpoint to resume from, and why each newer one was skipped."""

    folder: str | None = None
    manifest: Manifest | None = None
    passed_over: list[str] = field(default_factory=list)


def step_folder(step: int) -> str:
    return f"step-{step:08d}"


def step_folders(storage: Storage) -> list[str]:
    """All checkpoint folders, committed or not, oldest first by step; clocks may jump."""
    steps = [(int(match[1]), name) for name in storage.folders() if (match := STEP.fullmatch(name))]
    return [name for _, name in sorted(steps)]


def committed(storage: Storage) -> dict[str, Manifest | None]:
    """Every committed checkpoint, oldest first: folder -> its manifest, None if unreadable.

    Does not verify their files.
    """
    found: dict[str, Manifest | None] = {}
    for folder in step_folders(storage):
        if f"{folder}/{NAME}" in storage.files(folder):
            try:
                found[folder] = read_manifest(storage, folder)
            except CheckpointError:
                found[folder] = None
    return found


def course(manifests: Iterable[Manifest | None], digest: str, last_step: int) -> dict[int, Manifest]:
    """The checkpoints of one stage's settings up to a step: step -> manifest.

    Later ones belong to a trajectory that the run abandoned when it resumed from an earlier checkpoint.
    """
    return {m.step: m for m in manifests if m and m.digest == digest and m.step <= last_step}


def newest_valid(storage: Storage, digest: str) -> Selection:
    """The newest checkpoint that passes verification and belongs to a stage with these inputs.

    Raises `NewerFormat` if a later version of this package wrote one.
    """
    passed_over = []
    for folder in reversed(step_folders(storage)):
        try:
            manifest = verify_checkpoint(storage, folder)
        except NewerFormat:
            raise
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        if manifest.digest == digest:
            return Selection(folder, manifest, passed_over)
        passed_over.append(f"{storage.url(folder)} was written for other settings")
    return Selection(passed_over=passed_over)
