"""The model in a committed checkpoint, of a training stage that has finished or has not."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.checkpoints.manifest import Manifest, verify
from pipeline.checkpoints.retention import best_step
from pipeline.checkpoints.selection import committed, step_folder
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import Storage, open_storage
from pipeline.errors import CheckpointError, ConfigError
from pipeline.metrics.outcome import schema_of
from pipeline.metrics.schema import VAL
from pipeline.models.bundle import TOKENIZER, Bundle, Preprocess, load_description
from pipeline.models.heads.text_tower.shape import text_length
from pipeline.models.pretrained import locate
from pipeline.models.spec import ModelSpec
from pipeline.stages.folder import Status, checkpointing_stages
from pipeline.text.tokenizer import load_tokenizer
from pipeline.train.job import stage_id

STEP = re.compile(r"step-(\d+)")


def checkpoint_bundle(path: Path, which: str) -> Bundle:
    """The model of a checkpoint: `best` by the stage's `keep_best`, `last`, or `step-N`; the weights' average if kept.

    `path` is a stage's folder, RUN/STAGE, or a run with a single training stage. Raises `CheckpointError` where there
    is no such checkpoint, or its files do not verify, and `ConfigError` where `which` is none of these.
    """
    folder, status = only_stage(locate(path))
    assert status.checkpoints is not None
    storage = open_storage(status.checkpoints)
    step = chosen_step(folder, status, storage, which)
    with storage.reading(step_folder(step)):
        try:
            manifest = verify(storage, step_folder(step))
        except CheckpointError as error:
            hint = f"`minivit checkpoints verify {folder}` shows which are intact"
            raise CheckpointError(f"{error}; take another one, {hint}") from None
        reader = StateReader(storage, step_folder(step), manifest)
        state = reader.model_state()
    spec = ModelSpec.from_dict(manifest.spec)
    inputs = status.inputs  # the manifest has their digest
    pixels = {"channels": spec.backbone.channels, "image_size": spec.backbone.image_size, **inputs["preprocess"]}
    preprocess = Preprocess.from_dict(pixels)
    if (length := text_length(spec)) is not None:
        preprocess = replace(preprocess, tokenizer=load_tokenizer(folder / TOKENIZER, length))
    provenance = {
        "stage": stage_id(folder),
        "checkpoint": storage.url(step_folder(step)),
        "step": step,
        "samples": manifest.slots,
        "ema": inputs["settings"].get("ema"),
        "digest": manifest.digest,
        "metrics": manifest.metrics,
    }
    finished = folder / "model"
    task_settings = load_description(finished).task_settings if finished.is_dir() else {}
    return Bundle(state, spec, preprocess, inputs["classes"], provenance, task_settings)


def only_stage(path: Path) -> tuple[Path, Status]:
    """The training stage that a path means: its folder and status."""
    found = checkpointing_stages(path)
    if len(found) > 1:
        raise CheckpointError(f"{path}: holds {len(found)} training stages; name one, {', '.join(map(str, found))}")
    return next(iter(found.items()))


def chosen_step(folder: Path, status: Status, storage: Storage, which: str) -> int:
    """The step of the checkpoint that is meant, which is committed and of the stage's present settings."""
    steps = own_checkpoints(storage, status)
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint of it is committed yet; run the pipeline first")
    there = ", ".join(f"step-{step}" for step in steps)
    if which == "last":
        return max(steps)
    if which == "best":
        return _best(folder, status, storage, there)
    if not (match := STEP.fullmatch(which)):
        raise ConfigError(f"--checkpoint: found '{which}', expected best, last or one of {there}")
    if (step := int(match[1])) not in steps:
        raise CheckpointError(f"{folder}: no checkpoint of step {step} is committed; take best, last or one of {there}")
    return step


def _best(folder: Path, status: Status, storage: Storage, there: str) -> int:
    if status.keep_best is None:
        raise CheckpointError(
            f"{folder}: its checkpoint.keep_best is not set, so no checkpoint is kept as the best; take last or one of "
            f"{there}, or set keep_best: {VAL}{schema_of(asdict(status)).selects} and run the pipeline"
        )
    step = best_checkpoint(storage, status)
    if step is None:
        raise CheckpointError(
            f"{folder}: none of its checkpoints was validated at its own step; take last or one of {there}"
        )
    return step


def own_checkpoints(storage: Storage, status: Status) -> dict[int, Manifest]:
    """The committed checkpoints of a stage's present settings, oldest first: step -> manifest."""
    return {m.step: m for m in committed(storage).values() if m and m.digest == status.digest}


def best_checkpoint(storage: Storage, status: Status) -> int | None:
    """The step of the best committed checkpoint by the stage's `keep_best`; None without one."""
    if status.keep_best is None:
        return None
    better = schema_of(asdict(status)).better(status.keep_best)
    found = {step: manifest.metrics for step, manifest in own_checkpoints(storage, status).items()}
    return best_step(found, status.keep_best, better)
