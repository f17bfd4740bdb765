"""The checkpoints of one stage: their folders, the newest valid one, and how many are kept."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints.manifest import NAME, Manifest, verify
from pipeline.errors import CheckpointError

STEP = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Selection:
    """The checkpoint to resume from, and the newer ones that were passed over, each with the reason."""

    folder: Path | None
    manifest: Manifest | None
    passed_over: list[str]


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def step_folders(root: Path) -> list[Path]:
    """All checkpoint folders under `root`, committed or not, oldest first."""
    return sorted(path for path in root.glob("step-*") if STEP.fullmatch(path.name)) if root.is_dir() else []


def newest_valid(root: Path, digest: str) -> Selection:
    """The newest checkpoint that verifies and belongs to a stage with these inputs."""
    passed_over = []
    for folder in reversed(step_folders(root)):
        try:
            manifest = verify(folder)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        if manifest.digest == digest:
            return Selection(folder, manifest, passed_over)
        passed_over.append(f"{folder} was written for other settings")
    return Selection(None, None, passed_over)


def prune(root: Path, keep_last: int) -> None:
    """Delete all but the last `keep_last` committed checkpoints, and what was left uncommitted before them.

    The manifest goes first, so that a half-deleted checkpoint is no checkpoint.
    """
    folders = step_folders(root)
    committed = [folder for folder in folders if (folder / NAME).is_file()]
    for folder in folders:
        if committed and folder < committed[-keep_last:][0]:
            (folder / NAME).unlink(missing_ok=True)
            for path in (folder, *root.glob(f"{folder.name}-*")):
                shutil.rmtree(path, ignore_errors=True)
