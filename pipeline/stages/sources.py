"""Models that a stage refers to: another stage, one of its branches, a bundle on disk, foreign weights."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from pipeline.config.references import is_foreign
from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.errors import ConfigError
from pipeline.files import hash_file
from pipeline.metrics.outcome import choose_branch
from pipeline.models.bundle import DESCRIPTION, WEIGHTS, Bundle, Preprocess, check_shapes, load_bundle
from pipeline.models.find_bundle import find_bundle
from pipeline.models.foreign import BESIDE, import_foreign, load_foreign
from pipeline.models.integrity import check_files
from pipeline.stages.context import RunContext
from pipeline.stages.folder import RunFolder
from pipeline.stages.inputs import inputs_digest, model_inputs, non_defaults
from pipeline.stages.resolve import reference_ids, unspecified_settings

IMPORTED = "imported"
_importing = Lock()  # branches that start in parallel from the same weights import them once


@dataclass(frozen=True)
class SourceModel:
    """A finished model: display name, bundle, and a digest of its weights and of what gives them meaning."""

    name: str
    path: Path
    digest: str


def resolve_source(context: RunContext, stage_id: str, reference: str) -> SourceModel:
    """The finished model that `reference` stands for.

    A stage that fans out stands for its best branch in validation; a path for the model of an export, stage folder or
    run folder; foreign weights are imported into the run's folder, once, as a bundle. Raises `ConfigError` if a branch
    has no validation to compare, `ModelError` if there is no model.
    """
    branch_ids = reference_ids(context.config, reference)
    if len(branch_ids) > 1:
        branch_ids = [best_branch(context, stage_id, branch_ids)]
    if not branch_ids:
        foreign = is_foreign(context.config, reference)
        path = imported(context, stage_id, reference) if foreign else find_bundle(reference)
        check_files(path)
        return SourceModel(reference, path, bundle_digest(path))
    path = context.folder.stage(branch_ids[0]).model
    return SourceModel(branch_ids[0], path, bundle_digest(path))


def bundle_digest(folder: Path) -> str:
    """32 hex digits that change with a model's weights, spec, preprocessing or classes."""
    described = load_bundle(folder, weights=False)
    meaning = [model_inputs(described.spec), non_defaults(described.preprocess), described.classes]
    return inputs_digest({"weights": hash_file(folder / WEIGHTS), "meaning": meaning})


def imported(context: RunContext, stage_id: str, reference: str) -> Path:
    """Import foreign weights into this run and return their bundle; changed files of the same name get a new one."""
    stage = context.config.stages[stage_id.partition("/")[0]]
    folder = import_folder(context.folder, reference, stage)
    with _importing:
        if not (folder / DESCRIPTION).is_file():
            import_foreign(reference, folder, **unspecified_settings(stage, reference))
            context.say(stage_id, f"{reference} was imported to {folder}")
    return folder


def import_folder(run: RunFolder, reference: str, stage: StageConfig) -> Path:
    """Where a run's folder keeps, or will keep, the bundle of foreign weights."""
    file = Path(reference)
    files = [file, *(file.parent / name for name in BESIDE)] if file.is_file() else []
    key = [reference, unspecified_settings(stage, reference), *(hash_file(file) for file in files if file.is_file())]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", reference).strip("-.")[-80:]
    return run.path / IMPORTED / f"{name}-{digest}"


def describe_source(config: PipelineConfig, reference: str, stage: StageConfig) -> Bundle:
    """The model, without its weights, of a path or of foreign weights, before any stage has run.

    Raises `ModelError` if there is none, or it is damaged.
    """
    if is_foreign(config, reference):
        folder = import_folder(RunFolder(Path(config.runs_dir) / config.name), reference, stage)
        if not (folder / DESCRIPTION).is_file():
            return load_foreign(reference, weights=False, **unspecified_settings(stage, reference))
    else:
        folder = find_bundle(reference)
    described = load_bundle(folder, weights=False)
    check_shapes(folder, described.spec)
    return described


def other_normalisation(source: Preprocess, stage: Preprocess) -> str | None:
    """A sentence if the stage's normalisation or background differs from the one its source was trained with."""
    if source.background != stage.background:
        return (
            f"its source was trained with transparent pixels showing {list(source.background)}, but here they show "
            f"{list(stage.background)}: see `background` of the dataset"
        )
    if source.channels != stage.channels or np.allclose((source.mean, source.std), (stage.mean, stage.std), atol=1e-3):
        return None
    was, now = (f"mean {list(one.mean)} and std {list(one.std)}" for one in (source, stage))
    return (
        f"its source was trained on images normalised by {was}, but these by {now}: see `mean` and `std` of the dataset"
    )


def other_tokenizer(source: Preprocess, stage: Preprocess) -> str | None:
    """A sentence if both models read texts, but with different tokenizers."""
    if not (source.tokenizer and stage.tokenizer) or source.tokenizer.content == stage.tokenizer.content:
        return None
    return (
        f"its source's tokenizer has {source.tokenizer.size} tokens, but it reads texts with another, of "
        f"{stage.tokenizer.size}, which its text tower has to learn anew: see `task.tokenizer`"
    )


def best_branch(context: RunContext, stage_id: str, branch_ids: list[str]) -> str:
    """The branch that is best in validation. Raises ConfigError if one has no validation."""
    statuses = {branch_id: context.folder.stage(branch_id).status() for branch_id in branch_ids}
    measure, values, best = choose_branch({one: asdict(status) if status else {} for one, status in statuses.items()})
    if best is None:
        unknown = next(branch_id for branch_id, value in values.items() if value is None)
        stage_name = unknown.partition("/")[0]
        raise ConfigError(
            f"stages.{stage_id}: {stage_name!r} fans out, but {unknown} has no validation {measure.words} to "
            f"pick the best by; set stages.{stage_name}.data.val, or name one branch"
        )
    listed = ", ".join(f"{branch_id} {value:.4f}" for branch_id, value in values.items())
    context.say(stage_id, f"uses {best}, the best by validation {measure.words} ({listed})")
    return best
