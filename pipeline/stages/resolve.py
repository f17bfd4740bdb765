"""A pipeline's stages before any of them runs: branches, their order, and the model that each trains.

A stage whose `model.variant` is a list fans out: each variant is a branch with the id STAGE/VARIANT. Every other stage
is one branch whose id is its name.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.config.fields import show
from pipeline.config.references import source_stage
from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError, ModelError
from pipeline.models.heads import head_kind
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import FIXED_FIELDS, Pair, ViTSpec, Windows, as_pair, whole_patches
from pipeline.models.variants import TOKEN_FIELDS, build_backbone
from pipeline.stream.resolution import in_proportion
from pipeline.tasks.task import task_of
from pipeline.train.step_shapes import step_shapes


class Branch(NamedTuple):
    """One unit of work. `variant` is None if the stage names no variant."""

    id: str
    stage_name: str
    variant: str | None
    stage: StageConfig


def stage_branches(config: PipelineConfig) -> list[Branch]:
    """All branches, each after those it depends on, otherwise in file order."""
    waiting = {branch.id: branch for name in config.stages for branch in _branches(config, name)}
    ordered: dict[str, Branch] = {}

    def visit(branch_id: str) -> None:
        if branch_id not in ordered:
            for needed in dependencies(config, branch_id):
                visit(needed)
            ordered[branch_id] = waiting[branch_id]

    for branch_id in waiting:
        visit(branch_id)
    return list(ordered.values())


def on_workers(config: PipelineConfig) -> dict[str, StageConfig]:
    """The stages that run on workers, by name."""
    return {name: stage for name, stage in config.stages.items() if stage.on_workers}


def most_workers(stage: StageConfig) -> int | None:
    """The most workers that all get a share of every step; None if a stage has no steps."""
    return min(stage.data.lanes, stage.global_batch_size) if isinstance(stage, TrainStage) else None


def dependencies(config: PipelineConfig, branch_id: str) -> list[str]:
    """Ids of the branches whose results this one depends on; a report depends on everything else."""
    stage_name = branch_id.partition("/")[0]
    stage = config.stages[stage_name]
    if stage.reads_run:
        others = [name for name, other in config.stages.items() if not other.reads_run]
        return [branch.id for name in others for branch in _branches(config, name)]
    references = stage.models_read.values()
    return list(dict.fromkeys(found for reference in references for found in reference_ids(config, reference)))


def awaited_ids(config: PipelineConfig, branch_id: str) -> list[str]:
    """Ids of the branches that must finish before this one starts: its dependencies, and those that its type awaits."""
    stage = config.stages[branch_id.partition("/")[0]]
    others = [branch.id for name in stage.awaits(config.stages) for branch in _branches(config, name)]
    return list(dict.fromkeys([*dependencies(config, branch_id), *others]))


def reference_ids(config: PipelineConfig, reference: str) -> list[str]:
    """The branches that a model reference may stand for: all of a fanned-out stage, since any may be its best.

    Empty for a path to an export and for foreign weights.
    """
    stage_name = source_stage(config, reference)
    if stage_name is None:
        return []
    variant = reference.partition("/")[2]
    branches = _branches(config, stage_name)
    return [branch.id for branch in branches if not variant or branch.variant == variant]


def named_models(config: PipelineConfig, references: Iterable[str]) -> list[str]:
    """The models that references stand for where all branches count: the branches' ids, or the reference itself."""
    return [name for reference in references for name in reference_ids(config, reference) or [reference]]


def _branches(config: PipelineConfig, stage_name: str) -> list[Branch]:
    stage = config.stages[stage_name]
    if not isinstance(stage, TrainStage):
        return [Branch(stage_name, stage_name, None, stage)]
    if stage.model.fans_out:
        return [Branch(f"{stage_name}/{variant}", stage_name, variant, stage) for variant in stage.model.variants]
    return [Branch(stage_name, stage_name, next(iter(stage.model.variants), None), stage)]


def stage_spec(
    branch: Branch, num_classes: int, source: ModelSpec | None = None, teacher: ModelSpec | None = None
) -> ModelSpec:
    """The model that a training branch trains; `source` is the one it starts from, required if it names no variant.

    `teacher` is the one it learns from, required if the task has a teacher.
    Raises ConfigError, with the dotted path, if the settings do not form a valid model, an image size does not fit the
    patch, or the source's weights cannot be adapted to this model.
    """
    stage, where = branch.stage, f"stages.{branch.stage_name}"
    assert isinstance(stage, TrainStage)
    settings, task = _model_settings(stage, where), task_of(stage.task)
    try:
        if branch.variant is not None:
            size, channels = stage.model.image_size, stage.model.channels
            backbone = build_backbone(branch.variant, image_size=size, channels=channels, **settings)
        else:
            assert source is not None
            backbone = _like(source.backbone, stage, settings)
    except ModelError as error:
        section = "" if str(error).startswith("model.") else "model."
        raise ConfigError(f"{where}.{section}{error}") from None
    try:
        spec = (task.starting_from(source) if source else task).model_spec(backbone, num_classes, teacher)
    except ModelError as error:
        section = "" if str(error).startswith(("model.", "task.")) else "task."
        raise ConfigError(f"{where}.{section}{error}") from None
    check_sizes(branch, backbone)
    if source is not None:
        _check_source(branch, backbone, source.backbone)
    return spec


def _model_settings(stage: TrainStage, where: str) -> dict[str, Any]:
    """The model fields that the stage sets itself, plus those that its task requires."""
    given, needed = stage.model.overrides(), task_of(stage.task).backbone_fields()
    for name, value in needed.items():
        if given.get(name, value) != value:
            raise ConfigError(
                f"{where}.model.{name}: found {show(given[name])}, but the task {stage.task.type} needs {show(value)}; "
                "leave it out"
            )
    if "windows" in given:
        given["windows"] = None if given["windows"] == "none" else Windows(**given["windows"])
    return given | needed


def _like(source: ViTSpec, stage: TrainStage, settings: dict[str, Any]) -> ViTSpec:
    """The source's spec, overridden by the stage's own settings."""
    settings = dict(settings)
    patch = as_pair(settings.pop("patch_size", source.patch))
    tokens = dataclasses.replace(
        source.tokens, **{theirs: settings.pop(ours) for ours, theirs in TOKEN_FIELDS.items() if ours in settings}
    )
    settings |= {"patch": patch, "tokens": tokens, "channels": stage.model.channels}
    one_patch = dataclasses.replace(source, grid=(1, 1), **settings)
    return dataclasses.replace(one_patch, grid=one_patch.grid_for(as_pair(stage.model.image_size)))


def _check_source(branch: Branch, spec: ViTSpec, source: ViTSpec) -> None:
    for field in FIXED_FIELDS:
        ours, theirs = getattr(spec, field), getattr(source, field)
        if ours != theirs:
            stage = branch.stage
            assert isinstance(stage, TrainStage)
            raise ConfigError(
                f"stages.{branch.stage_name}.init_from: '{stage.init_from}' may be a {source.variant} with {field} = "
                f"{theirs}, but this stage's model has {ours}, and weights cannot change that; "
                f"leave out model.variant to take the source's, or name one STAGE/VARIANT"
            )


def stage_image_sizes(stage: TrainStage) -> list[Pair]:
    """(height, width) of a stage's images: first the model's own, for evaluation, then those of its `resolution`."""
    own = as_pair(stage.model.image_size)
    return list(dict.fromkeys([own, *(in_proportion(size, own) for size in stage.resolution.sizes)]))


def check_sizes(branch: Branch, spec: ViTSpec) -> None:
    """Raise ConfigError if images or views of any of the stage's sizes do not divide into whole patches."""
    assert isinstance(branch.stage, TrainStage)
    shapes = step_shapes(branch.stage, spec)
    for size, patch in shapes:
        setting = "resolution.sizes" if patch == spec.patch else "resolution.patch_sizes"
        try:
            whole_patches(size, patch)
        except ModelError as error:
            reason = str(error).removeprefix("image_size: ")
            raise ConfigError(f"stages.{branch.stage_name}.{setting}: {reason}") from None
    for (_, patch), (name, group) in itertools.product(shapes, branch.stage.task.view_groups().items()):
        try:
            whole_patches(group.size or spec.image_size, patch)
        except ModelError as error:
            reason = str(error).removeprefix("image_size: ")
            raise ConfigError(f"stages.{branch.stage_name}.task.views.{name}.size: {reason}") from None


def check_channels(config: PipelineConfig, stage_name: str) -> None:
    """Raise ConfigError if a stage's data sets differ in mean, std or background, or do not fit its channels."""
    stage = config.stages[stage_name]
    assert isinstance(stage, TrainStage)
    first, *others = stage.data.parts
    mean, std = config.datasets[first].mean, config.datasets[first].std
    if len(mean) != stage.model.channels:
        raise ConfigError(
            f"datasets.{first}.mean: found {len(mean)} values, but stages.{stage_name}.model.channels is "
            f"{stage.model.channels}; give mean and std one value per channel"
        )
    for other in [*others, *([stage.data.val] if stage.data.val else [])]:
        if (config.datasets[other].mean, config.datasets[other].std) != (mean, std):
            raise ConfigError(
                f"datasets.{other}.mean: mean and std differ from those of {first}, but stages.{stage_name} reads both "
                "and its model normalises all images alike; give both the same"
            )
        seen, expected = config.datasets[other].background, config.datasets[first].background
        if seen != expected:
            raise ConfigError(
                f"datasets.{other}.background: found {list(seen)}, but stages.{stage_name} also reads {first}, whose "
                f"transparent pixels show {list(expected)}; give both the same"
            )


def check_teacher(
    branch: Branch, student: ModelSpec, classes: list[str] | None, teacher: ModelSpec, names: list[str] | None
) -> None:
    """Raise ConfigError for a teacher that a branch's model cannot learn from; see `BaseTask.check_teacher`."""
    assert isinstance(branch.stage, TrainStage)
    try:
        task_of(branch.stage.task).check_teacher(student, classes, teacher, names)
    except ModelError as error:
        where = f"stages.{branch.stage_name}.task.teacher"
        raise ConfigError(f"{where}: '{branch.stage.task.taught_by}' cannot teach this stage: {error}") from None


def unspecified_settings(stage: StageConfig, reference: str) -> dict[str, Any]:
    """A stage's settings that fill in what the file of foreign weights it starts from does not specify."""
    if not isinstance(stage, TrainStage) or stage.init_from != reference:
        return {}
    given = {name: getattr(stage.model, name) for name in ("num_heads", "eps", "activation")}
    return {name: value for name, value in given.items() if value is not None}


def describe_surgery(before: ModelSpec, after: ModelSpec) -> list[str]:
    """The changes from one model's weights to another's, in words; empty if nothing changes."""
    source, target = before.backbone, after.backbone
    changes = {
        "kind of positions": (source.positions, target.positions),
        _position_change(source, target): (_cross(source.grid), _cross(target.grid)),
        "patch kernel": (_cross(source.patch), _cross(target.patch)),
        "channels": (source.channels, target.channels),
        "head classes": (before.num_classes or after.num_classes, after.num_classes or before.num_classes),
        "layer scale": (source.layer_scale, target.layer_scale),
        "windows": (_windows(source), _windows(target)),
        "pooling": (source.pool, target.pool),
        "tokens": (_tokens(source), _tokens(target)),
    }
    found = [f"{what} {old} -> {new}" for what, (old, new) in changes.items() if old != new]
    kept = {name for name in after.heads if _kept(before, after, name)}
    for heads, what in ((before.heads, "dropped"), (after.heads, "new")):
        found += [f"head {name} ({head.kind}) {what}" for name, head in heads.items() if name not in kept]
    return found


def _kept(before: ModelSpec, after: ModelSpec, name: str) -> bool:
    """Whether a surgery copies a head or at least those of its tensors that have no row per class."""
    if name not in before.heads or before.heads[name].kind != after.heads[name].kind:
        return False
    old, new = before.heads[name], after.heads[name]
    kind = head_kind(new.kind)
    if kind.class_tensors(new):
        old = dataclasses.replace(old, outputs=new.outputs)
    return kind.num_parameters(old, before.backbone) == kind.num_parameters(new, after.backbone)


def _position_change(source: ViTSpec, target: ViTSpec) -> str:
    if target.positions == "none":
        return "grid"
    slices = target.fewer_patches == "slice" and target.num_patches < source.num_patches
    return {"learned": "", "sincos": "sine-cosine "}[target.positions] + "positions" + (", sliced" if slices else "")


def _cross(pair: Iterable[int]) -> str:
    return "x".join(map(str, pair))


def _windows(spec: ViTSpec) -> str:
    windows = spec.windows
    return "none" if windows is None else f"of {windows.size} with one layer in {windows.global_every} global"


def _tokens(spec: ViTSpec) -> str:
    names = [name for name in ("cls", "dist", "mask") if getattr(spec.tokens, name)]
    if spec.tokens.registers:
        names.append(f"{spec.tokens.registers} registers")
    covered = spec.tokens.positions_cover_prefix or spec.positions == "none" or not spec.tokens.num_prefix
    return ("+".join(names) or "none") + ("" if covered else " without positions")
