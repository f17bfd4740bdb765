"""What a stage names as its starting point: another stage, one of its branches, or a bundle on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints.manifest import hash_file
from pipeline.config.schema import TrainStage
from pipeline.errors import ConfigError, ModelError
from pipeline.stages.context import RunContext

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Source:
    """A finished model: its name for people, its bundle, and a digest of its weights."""

    name: str
    path: Path
    digest: str


def resolve_source(context: RunContext, stage_id: str, reference: str) -> Source:
    """The finished model that `reference` stands for.

    A stage that fans out stands for its branch with the best validation accuracy.
    Raises `ConfigError` if there is none to compare, `ModelError` if a path holds no model.
    """
    stage = context.config.stages.get(reference)
    if isinstance(stage, TrainStage) and len(stage.model.variants) > 1:
        reference = best_branch(context, stage_id, reference, stage)
    folder = context.folder.stage(reference).model
    path = folder if folder.is_dir() else Path(reference)
    if not (path / WEIGHTS).is_file():
        raise ModelError(
            f"stages.{stage_id}: {reference!r} holds no finished model ({path / WEIGHTS} is missing); "
            "name a finished stage or the folder of an export"
        )
    return Source(reference, path, hash_file(path / WEIGHTS)[:32])


def best_branch(context: RunContext, stage_id: str, name: str, stage: TrainStage) -> str:
    """`STAGE/VARIANT` of the branch whose last validation accuracy is highest; the first of equals."""
    accuracies: dict[str, float] = {}
    for variant in stage.model.variants:
        branch_id = f"{name}/{variant}"
        status = context.folder.stage(branch_id).status()
        accuracy = status.result.get("accuracy") if status else None
        if accuracy is None:
            raise ConfigError(
                f"stages.{stage_id}: {name!r} fans out, and {branch_id} has no validation accuracy to pick the best by; "
                f"set stages.{name}.data.val, or name one branch"
            )
        accuracies[branch_id] = accuracy
    best = max(accuracies, key=accuracies.__getitem__)
    listed = ", ".join(f"{branch} {accuracy:.4f}" for branch, accuracy in accuracies.items())
    context.say(stage_id, f"takes {best}, the best by validation accuracy ({listed})")
    return best
