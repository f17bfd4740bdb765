"""The model in a committed checkpoint of a training stage, finished or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from pipeline.checkpoints.manifest import Manifest, verify_checkpoint
from pipeline.checkpoints.retention import best_step
from pipeline.checkpoints.selection import committed, step_folder
from pipeline.checkpoints.shard_file import WEIGHTS as OPTIMISED
from pipeline.checkpoints.state_reader import FINISHED, StateReader
from pipeline.checkpoints.storage import Storage, open_storage
from pipeline.config.export import EMA, LAST, SOUP, STEP
from pipeline.errors import CheckpointError, ConfigError
from pipeline.metrics.outcome import schema_of
from pipeline.metrics.schema import VAL
from pipeline.models.bundle import TOKENIZER, Bundle, Preprocess, load_bundle
from pipeline.models.find_bundle import locate
from pipeline.models.heads.text_tower.shape import text_length
from pipeline.models.model_spec import ModelSpec
from pipeline.stages.folder import Status, checkpointing_stages
from pipeline.text.tokenizer import load_tokenizer
from pipeline.train.job import stage_id


def checkpoint_bundle(path: Path, which: str) -> Bundle:
    """The model of a checkpoint: `best` by the stage's `keep_best`, `last`, or `step-N`; averaged weights if kept.

    `path` is a stage's folder, RUN/STAGE, or a run with a single training stage. Raises `CheckpointError` if there is
    no such checkpoint or its files fail verification, and `ConfigError` for any other `which`.
    """
    folder, status = only_stage(path)
    assert status.checkpoints is not None
    storage = open_storage(status.checkpoints)
    return _bundle(folder, status, storage, [chosen_step(folder, status, storage, which)], FINISHED)


def weights_bundle(path: Path, weights: str) -> Bundle:
    """The model with the weights that `config.export.Weights` describes; `path` and errors as in `checkpoint_bundle`.

    Memory holds one copy of the model, plus one tensor at a time of the checkpoints being averaged (model soups,
    Wortsman et al. 2022; within one run: Izmailov et al. 2018).
    """
    folder, status = only_stage(path)
    assert status.checkpoints is not None
    storage = open_storage(status.checkpoints)
    if soup := SOUP.fullmatch(weights):
        steps, wanted = list(own_checkpoints(storage, status)), int(soup[1])
        if len(steps) < wanted:
            raise CheckpointError(
                f"{folder}: {weights} is the mean of {wanted} checkpoints, but only {len(steps)} are committed; use "
                "fewer, or keep more with checkpoint.keep_last"
            )
        bundle = _bundle(folder, status, storage, steps[-wanted:], FINISHED)
    elif weights in (LAST, EMA):
        if weights == EMA and status.inputs["settings"].get("ema") is None:
            raise CheckpointError(f"{folder}: has no moving average of its weights; use last, or set the stage's ema")
        keys = (EMA,) if weights == EMA else (OPTIMISED,)
        bundle = _bundle(folder, status, storage, [chosen_step(folder, status, storage, LAST)], keys)
    else:
        bundle = _bundle(folder, status, storage, [chosen_step(folder, status, storage, weights)], FINISHED)
    return replace(bundle, provenance=bundle.provenance | {"weights": weights})


def _bundle(folder: Path, status: Status, storage: Storage, steps: list[int], keys: Sequence[str]) -> Bundle:
    """The model whose weights are the mean over the checkpoints at `steps`."""
    with ExitStack() as stack:
        readers = []
        for step in steps:
            stack.enter_context(storage.reading(step_folder(step)))
            manifest = _verified(folder, storage, step)
            readers.append(StateReader(storage, step_folder(step), manifest))
        buffers = (*keys, OPTIMISED)  # buffers have no average
        state = dict(mean_tensors([reader.tensors(buffers) for reader in readers]))
    spec = ModelSpec.from_dict(manifest.spec)
    inputs = status.inputs  # the manifest records their digest
    pixels = {"channels": spec.backbone.channels, "image_size": spec.backbone.image_size, **inputs["preprocess"]}
    preprocess = Preprocess.from_dict(pixels)
    if (length := text_length(spec.heads)) is not None:
        preprocess = replace(preprocess, tokenizer=load_tokenizer(folder / TOKENIZER, length))
    urls = [storage.url(step_folder(step)) for step in steps]
    provenance = {
        "stage": stage_id(folder),
        "checkpoint": urls[0] if len(urls) == 1 else urls,
        "step": manifest.step,
        "samples": manifest.slots,
        "ema": inputs["settings"].get("ema"),
        "digest": manifest.digest,
        "metrics": manifest.metrics if len(steps) == 1 and keys == FINISHED else {},
    }
    finished = folder / "model"
    task_settings = load_bundle(finished, weights=False).task_settings if finished.is_dir() else {}
    return Bundle(state, spec, preprocess, inputs["classes"], provenance, task_settings)


def mean_tensors(models: Sequence[Iterator[tuple[str, Tensor]]]) -> Iterator[tuple[str, Tensor]]:
    """The mean of the models' tensors, name by name; integer tensors come from the last model."""
    for found in zip(*models, strict=True):
        name, value = found[-1]
        if value.is_floating_point():
            for count, (_, other) in enumerate(found[:-1], 2):
                value.lerp_(other, 1 / count)
        yield name, value


def _verified(folder: Path, storage: Storage, step: int) -> Manifest:
    try:
        return verify_checkpoint(storage, step_folder(step))
    except CheckpointError as error:
        hint = f"`minivit checkpoints verify {folder}` shows which are intact"
        raise CheckpointError(f"{error}; use another one: {hint}") from None


def only_stage(path: Path) -> tuple[Path, Status]:
    """The training stage that a path refers to: its folder and status. Raises `CheckpointError` for several or none."""
    path = locate(path)
    found = checkpointing_stages(path)
    if len(found) > 1:
        raise CheckpointError(f"{path}: found {len(found)} training stages; name one of {', '.join(map(str, found))}")
    return next(iter(found.items()))


def chosen_step(folder: Path, status: Status, storage: Storage, which: str) -> int:
    """The step of the requested checkpoint, which is committed and matches the stage's current settings."""
    steps = own_checkpoints(storage, status)
    if not steps:
        raise CheckpointError(f"{folder}: has no committed checkpoint yet; run the pipeline first")
    there = ", ".join(f"step-{step}" for step in steps)
    if which == "last":
        return max(steps)
    if which == "best":
        return _best(folder, status, storage, there)
    if not (match := STEP.fullmatch(which)):
        raise ConfigError(f"--checkpoint: found '{which}', expected best, last or one of {there}")
    if (step := int(match[1])) not in steps:
        raise CheckpointError(
            f"{folder}: found no committed checkpoint of step {step}; use best, last or one of {there}"
        )
    return step


def _best(folder: Path, status: Status, storage: Storage, there: str) -> int:
    if status.keep_best is None:
        raise CheckpointError(
            f"{folder}: its checkpoint.keep_best is not set, so no checkpoint is kept as the best; use last or one of "
            f"{there}, or set keep_best: {VAL}{schema_of(asdict(status)).selects} and run the pipeline"
        )
    step = best_checkpoint(storage, status)
    if step is None:
        raise CheckpointError(
            f"{folder}: none of its checkpoints was validated at its own step; use last or one of {there}"
        )
    return step


def own_checkpoints(storage: Storage, status: Status) -> dict[int, Manifest]:
    """The committed checkpoints that match a stage's current settings, oldest first: step -> manifest."""
    return {m.step: m for m in committed(storage).values() if m and m.digest == status.digest}


def best_checkpoint(storage: Storage, status: Status) -> int | None:
    """The step of the best committed checkpoint by the stage's `keep_best`; None if there is none."""
    if status.keep_best is None:
        return None
    better = schema_of(asdict(status)).better(status.keep_best)
    found = {step: manifest.metrics for step, manifest in own_checkpoints(storage, status).items()}
    return best_step(found, status.keep_best, better)
