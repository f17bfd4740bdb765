"""The inputs that determine a stage's result: the single list of what each type of stage reads.

As long as the digest of its inputs is unchanged, a finished stage is skipped and its checkpoints remain valid.
Settings at their defaults are left out, so that a setting added by a later version changes no digest; changing a
default means raising `VERSION`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig, DatasetConfig
from pipeline.config.schema import EvaluateStage, ExportStage, ProbeStage, TrainStage
from pipeline.config.section import Duration, Section
from pipeline.config.task import DEFAULT, TaskConfig
from pipeline.config.training import EngineConfig, ModelConfig
from pipeline.models.model_spec import ModelSpec
from pipeline.stream.quarantine import manifest_digest
from pipeline.stream.source import Source, evaluation_of
from pipeline.tasks.distillation import Task as Distillation

VERSION = 2  # of the inputs' meaning; raising it makes every stage run again
NAMED = "models", "train"  # inputs that map names to digests or data sets
DIGESTS = "exclude", "init_from", "teacher", "model"  # inputs known only by digest

# Settings represented by what they resolve to.
RESOLVED: dict[type[Section], dict[str, str]] = {
    DatasetConfig: {
        "shards": "the digest of their index says what they hold, wherever they lie",
        "image_key": "the members that are read, which the index may name too",
        "targets": "the members that are read, which the index may name too, and what they mean",
        "classes": "the stage's classes, and which of them each label is",
        "mean": "the model's preprocessing, which is that of the training data",
        "std": "the model's preprocessing, which is that of the training data",
    },
    DataConfig: {"exclude": "the digest of the manifest's lines"},
    ModelConfig: {"variant": "the spec"},
    TrainStage: {"init_from": "the digest of that model"},
    Distillation: {"teacher": "the digest of that model"},
    EvaluateStage: {
        "models": "the digests of those models",
        "data": "the data set's own inputs",
        "task": "the models' own where it is left out",
    },
    ProbeStage: {"models": "the digests of those models", "data": "the data sets' own inputs"},
    ExportStage: {"model": "the digest of that model"},
}
# Settings that change how fast, how safely or how visibly a stage runs, but not what it computes.
WITHOUT_EFFECT: dict[type[Section], dict[str, str]] = {
    DatasetConfig: {"make": "says how shards come to be there", "cache": "holds copies"},
    DataConfig: {"loader_workers": "the order of the samples does not depend on who reads them"},
    Distillation: {"shard": "the same weights, gathered layer by layer"},
    EngineConfig: {
        "zero_stage": "the same sums, shared among ranks in another way",
        "compile": "the same mathematics in other kernels",
        "activation_checkpointing": "the same activations, computed twice",
        "deterministic": "the same mathematics in other kernels",
    },
    TrainStage: {
        "micro_batch_size": "the gradient is that of the global batch",
        "resources": "the same global batches on other workers",
        "checkpoint": "keeps what was computed",
        "eval": "measures what was computed",
        "log_every": "reports what was computed",
        "max_skipped_steps": "decides when a stage gives up",
    },
    EvaluateStage: {
        "batch_size": "each sample is counted once",
        "loader_workers": "the same samples, read by others",
        "resources": "the same samples on other workers",
    },
    ProbeStage: {
        "batch_size": "features of a sample depend on it alone",
        "loader_workers": "the same samples, read by others",
        "resources": "the same samples on other workers",
    },
    ExportStage: {"resources": "an export has no workers"},
}


def train_inputs(
    stage: TrainStage,
    *,
    spec: ModelSpec,
    classes: Sequence[str],
    seed: int,
    train: Sequence[Source],
    val: Source | None,
    init_from: str | None,
    teacher: str | None = None,
) -> dict[str, Any]:
    """Everything that determines what a training stage computes.

    `init_from` and `teacher` are the digests of the models that it starts from and learns from. Raises `DataError`
    if `data.exclude` is not a manifest.
    """
    given = settings(stage)
    if task := {name: value for name, value in given.pop("task", {}).items() if name not in stage.task.measuring}:
        given["task"] = task
    inputs = {
        "version": VERSION,
        "settings": given,
        "spec": model_inputs(spec),
        "preprocess": {name: list(getattr(train[0].config, name)) for name in ("mean", "std", "background")}
        | ({"eval": how} if (how := settings(evaluation_of(train, val))) else {}),
        "classes": list(classes),
        "seed": seed,
        "train": {source.name: source_inputs(source) for source in train},
        "order": [source.name for source in train],
        "val": source_inputs(val) if val else None,
        "exclude": manifest_digest(stage.data.exclude) if stage.data.exclude else None,
        "init_from": init_from,
        "teacher": teacher,
        "tokenizer": file_digest(texts.file) if (texts := stage.task.tokenizing()) and texts.file else None,
    }
    return _without_none(inputs)


def file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def evaluate_inputs(
    stage: EvaluateStage, *, task: TaskConfig, models: Mapping[str, str], data: Source, classes: Sequence[str]
) -> dict[str, Any]:
    """Everything that determines what an evaluation measures; `models` maps names to model digests."""
    inputs = {
        "version": VERSION,
        "settings": settings(stage),
        "models": dict(models),
        "data": source_inputs(data),
        "classes": list(classes),
        "task": settings(task) or None,
    }
    return _without_none(inputs)


def probe_inputs(
    stage: ProbeStage, *, models: Mapping[str, str], train: Source, test: Source, classes: Sequence[str], seed: int
) -> dict[str, Any]:
    """Everything that determines what a probe measures; `models` maps names to digests, baselines to their model's."""
    return {
        "version": VERSION,
        "settings": settings(stage),
        "models": dict(models),
        "data": {"train": source_inputs(train), "test": source_inputs(test)},
        "classes": list(classes),
        "seed": seed,
    }


def export_inputs(stage: ExportStage, *, model: str) -> dict[str, Any]:
    """Everything that determines what an export writes; `model` is the model's digest."""
    return {"version": VERSION, "settings": settings(stage), "model": model}


def model_inputs(spec: ModelSpec) -> dict[str, Any]:
    """A model without its weights: its backbone, plus heads and task unless it is a plain classifier."""
    backbone, plain = non_defaults(spec.backbone), ModelSpec.classifier(spec.backbone, max(spec.num_classes, 1))
    if spec == plain:
        return backbone | {"num_classes": spec.num_classes}
    return backbone | {"heads": _plain(spec.heads), "task": spec.task}


def source_inputs(source: Source) -> dict[str, Any]:
    """A data set as it is read: its content and its preprocessing."""
    inputs: dict[str, Any] = {"digest": source.index.digest, "image_key": source.keys.image_key}
    targets = {kind: target.inputs() for kind, target in source.targets.items()}
    inputs |= targets.pop("class_id", {})  # top level, where they were before other kinds existed
    return inputs | ({"targets": targets} if targets else {}) | settings(source.config)


def inputs_digest(inputs: Mapping[str, Any]) -> str:
    """32 hex digits that change when an input does."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why a stage's inputs do not match the recorded ones: the end of `runs again, because`."""
    if before.get("version") != now.get("version"):
        return "another version of this package recorded its inputs"
    return f"{', '.join(differences(before, now)) or 'its inputs'} changed"


def differences(before: Any, after: Any, path: str = "", *, comes_or_goes: bool = False) -> list[str]:
    """Dotted paths at which two inputs differ, with both values if they are short.

    A missing setting is at its default; a missing model or data set was added or removed. Digests are not shown.
    """
    if before == after:
        return []
    if comes_or_goes and (before is None or after is None):
        return [f"{path} ({'added' if before is None else 'removed'})"]
    if all(value is None or isinstance(value, Mapping) for value in (before, after)):
        old, new = before or {}, after or {}
        nested = [
            found
            for key in dict.fromkeys([*old, *new])
            for found in differences(
                old.get(key),
                new.get(key),
                f"{path}.{key}" if path else str(key),
                comes_or_goes=path in NAMED or (path, key) == ("", "val"),
            )
        ]
        if nested:
            return nested
    if path in DIGESTS or path.startswith("models.") or path.endswith(".digest"):
        return [path]
    was, now = ("default" if value is None else value for value in (before, after))
    shown = f" ({was} to {now})" if len(f"{was}{now}") <= 60 else ""
    return [f"{path}{shown}"]


def settings(section: Section) -> dict[str, Any]:
    """The settings of a section that are inputs themselves and differ from their defaults, as plain data."""
    left_out = RESOLVED.get(type(section), {}).keys() | WITHOUT_EFFECT.get(type(section), {}).keys()
    given: dict[str, Any] = {}
    if isinstance(section, TaskConfig) and section.type != DEFAULT:
        given["type"] = section.type  # the section's own default, but not the stage's
    for name, setting in type(section).model_fields.items():
        if name not in left_out:
            value = _plain(getattr(section, name))
            if setting.is_required() or value != _plain(setting.get_default(call_default_factory=True)):
                given[name] = value
    return given


def non_defaults(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as plain data."""
    given = {}
    for field in dataclasses.fields(value):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (current := _plain(getattr(value, field.name))) != _plain(default):
            given[field.name] = current
    return given


def _without_none(inputs: dict[str, Any]) -> dict[str, Any]:
    """Drop absent inputs, so that a later version can add one. A setting of null is not absent."""
    return {name: value for name, value in inputs.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, Section):
        return settings(value)
    if dataclasses.is_dataclass(value):
        return non_defaults(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
