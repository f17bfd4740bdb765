"""Finds the bundle of a finished model in an export, a stage's folder or a run's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.metrics.outcome import choose_branch
from pipeline.models.bundle import DESCRIPTION

TRAIN_STAGES = ("pretrain", "finetune")
SUPERSEDED = ".superseded-"  # in the name of a stage's old folder, set aside when it ran again


def find_bundle(path: str | os.PathLike[str]) -> Path:
    """Returns the bundle's folder in an export, a stage's folder or a run's.

    For a stage that fans out, this is the branch that is best in validation; for a run, the training stage that ended
    last. Raises `ModelError` if there is none, or if branches cannot be compared.
    """
    folder = locate(path)
    if (folder / "stages").is_dir():
        return _last_stage(folder) / "model"
    for candidate in (folder, folder / "model"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if branches := _finished(folder.glob("*/status.json")):
        return _best_branch(folder, branches) / "model"
    if folder.suffix == ".safetensors" or (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: found weights in another layout, such as timm's or Hugging Face's; give the export in the "
            "format safetensors, or the run; a training stage can import these weights by `init_from`"
        )
    raise ModelError(
        f"{folder}: found no finished model ({DESCRIPTION}); give an export in the format safetensors, or a run whose "
        "training finished"
    )


def locate(path: str | os.PathLike[str]) -> Path:
    """Returns the path itself, or RUN/STAGE as RUN/stages/STAGE. Raises `ModelError` if neither exists."""
    folder = Path(path)
    below = [run / "stages" / folder.relative_to(run) for run in folder.parents]
    for candidate in (folder, *below):
        if candidate.exists():
            return candidate
    raise ModelError(f"{folder}: does not exist; give an export, a stage's folder or a run's folder")


def _last_stage(run: Path) -> Path:
    """The training stage that ended last, or its best branch if it fans out."""
    finished = _finished((*run.glob("stages/*/status.json"), *run.glob("stages/*/*/status.json")))
    if not finished:
        raise ModelError(f"{run}: no training stage of this run has finished yet; run it to its end, or name a stage")
    last = max(finished, key=lambda folder: float(finished[folder].get("ended") or 0))
    if last.parent == run / "stages":
        return last
    return _best_branch(last.parent, {folder: s for folder, s in finished.items() if folder.parent == last.parent})


def _finished(files: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Folder -> status of the training stages and branches that finished with a model, in the order of their start."""
    statuses = {file.parent: _status(file.parent) for file in files if SUPERSEDED not in str(file)}
    finished = {
        folder: status
        for folder, status in statuses.items()
        if status.get("state") == "finished"
        and status.get("type") in TRAIN_STAGES
        and (folder / "model" / DESCRIPTION).is_file()
    }
    return dict(sorted(finished.items(), key=lambda item: float(item[1].get("started") or 0)))


def _best_branch(stage: Path, branches: dict[Path, dict[str, Any]]) -> Path:
    """The branch that is best in validation. Raises ModelError if one has no validation."""
    measure, values, best = choose_branch(branches)
    if best is None:
        unknown = next(folder.name for folder, value in values.items() if value is None)
        raise ModelError(
            f"{stage}: fans out, but its branch {unknown} has no validation {measure.words} to pick the best by; "
            f"give one branch's folder, such as {stage / unknown}"
        )
    return best


def _status(folder: Path) -> dict[str, Any]:
    try:
        status: dict[str, Any] = json.loads((folder / "status.json").read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{folder / 'status.json'}: not valid JSON ({error}); run the pipeline again to renew it"
        ) from error
    return status
