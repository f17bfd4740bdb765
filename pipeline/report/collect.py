"""Reads a run folder into plain records. Any file may be missing, as the run may be unfinished."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from pipeline.config.schema import EvaluateStage, ExportStage, PipelineConfig, ProbeStage, Stage, TrainStage
from pipeline.config.yaml_text import read_yaml
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.metrics.confusion import CONFUSION
from pipeline.metrics.files import PER_CLASS, PRECISION_RECALL
from pipeline.metrics.outcome import schema_of
from pipeline.metrics.schema import VAL, Measure, Schema, best
from pipeline.models.model_spec import ModelSpec
from pipeline.report.files import Row, as_time, is_number, read_arrays, read_json, read_lines, read_table


@dataclass(frozen=True)
class Series:
    """Values of one metric over optimiser steps; both arrays are [points], steps strictly increasing."""

    steps: np.ndarray
    values: np.ndarray

    def __bool__(self) -> bool:
        return bool(len(self.steps))

    @property
    def last(self) -> float | None:
        return float(self.values[-1]) if self else None

    def at(self, step: int) -> float | None:
        """The value at exactly this step, if it was logged."""
        found = np.flatnonzero(self.steps == step)
        return float(self.values[found[0]]) if len(found) else None


@dataclass(frozen=True)
class Evaluation:
    """One model's measures, by name, from an evaluate stage.

    `dataset` is an entry of the pipeline's `datasets`; `confusion` is int64 [pairs, 3]: true class, predicted class,
    count, for the pairs that occur; `per_class` and `precision_recall` are the model's rows of those tables, column ->
    text.
    """

    stage: str
    dataset: str
    model: str
    classes: list[str]
    schema: Schema
    measures: dict[str, float]
    samples: int | None
    bad_samples: int | None
    confusion: np.ndarray | None
    per_class: list[dict[str, str]] = field(default_factory=list)
    precision_recall: list[dict[str, str]] = field(default_factory=list)

    @property
    def ranked_measures(self) -> list[tuple[Measure, float]]:
        """The measures and their values, with the selecting one first."""
        return [(m, self.measures[m.name]) for m in self.schema.ranked if m.name in self.measures]


@dataclass(frozen=True)
class ProbeRecord:
    """A probe stage's results for each of its models, by name: the rows of probe.json."""

    stage: str
    train: str  # entries of the pipeline's `datasets`
    test: str
    features: str
    schema: Schema
    models: dict[str, Row]


@dataclass(frozen=True)
class BranchRecord:
    """The content of `stages/<id>/`: of one stage, or of one variant of a stage that fans out."""

    id: str
    stage: str
    variant: str | None
    config: Stage
    folder: Path
    status: Row
    rows: list[Row]
    events: list[Row]
    surgery: Row | None
    spec: ModelSpec | None

    @property
    def state(self) -> str:
        return str(self.status.get("state", "pending"))

    @property
    def trains(self) -> bool:
        return isinstance(self.config, TrainStage)

    @property
    def schema(self) -> Schema:
        """What it measures: as recorded when it ran, otherwise by its current task. Only for a training stage."""
        assert isinstance(self.config, TrainStage)
        return schema_of(self.status) if self.status.get("schema") else self.config.measured

    @property
    def measure(self) -> Measure:
        """The measure by which stages like this are compared."""
        return self.schema.selected

    @property
    def validated(self) -> Series:
        """The validation values of that measure."""
        return self.series(VAL + self.measure.name)

    @property
    def started(self) -> datetime | None:
        return as_time(self.status.get("started"))

    @property
    def spans(self) -> list[tuple[float, float]]:
        """Unix start and end times of each attempt; an attempt without an end lasts until its last logged row."""
        recorded = self.status.get("spans", [])
        logged = [row["time"] for row in self.rows if is_number(row.get("time"))]
        starts = [span[0] for span in recorded]
        spans = []
        for (start, *end), following in zip(recorded, [*starts[1:], math.inf], strict=False):
            spans.append((start, end[0] if end else max([start, *(t for t in logged if start <= t < following)])))
        return spans

    @property
    def seconds(self) -> float | None:
        """Total running time over all attempts."""
        return sum(max(end - start, 0.0) for start, end in self.spans) if self.spans else None

    def series(self, key: str) -> Series:
        """The metric `key`; a step replayed after a restart counts once, with its last value."""
        rows = [row for row in self.rows if is_number(row.get("step")) and is_number(row.get(key))]
        by_step = {int(row["step"]): float(row[key]) for row in rows}
        steps = sorted(by_step)
        return Series(np.array(steps, dtype=np.int64), np.array([by_step[step] for step in steps], dtype=np.float64))


@dataclass(frozen=True)
class Run:
    """A run folder. `branches` follow the order of the pipeline file."""

    folder: Path
    config: PipelineConfig
    digest: str
    record: Row
    branches: list[BranchRecord]
    evaluations: list[Evaluation] = field(default_factory=list)
    probes: list[ProbeRecord] = field(default_factory=list)

    @cached_property
    def by_id(self) -> dict[str, BranchRecord]:
        return {branch.id: branch for branch in self.branches}

    @property
    def trained(self) -> list[BranchRecord]:
        return [branch for branch in self.branches if branch.trains]

    def fan(self, reference: str) -> list[BranchRecord]:
        """All branches that a reference may stand for; empty for a path to an export."""
        return [branch for branch in self.branches if reference in (branch.id, branch.stage)]

    def selected(self, reference: str) -> list[BranchRecord]:
        """The branch that a reference stands for once all branches of its stage are finished; until then, all."""
        fan = self.fan(reference)
        if not fan or any(branch.state != "finished" or not branch.trains for branch in fan):
            return fan
        values = [branch.validated.last for branch in fan]
        chosen = best(dict(enumerate(values)), fan[0].measure.better)
        return fan if chosen is None or None in values else [fan[chosen]]

    def parents(self, branch: BranchRecord) -> list[BranchRecord]:
        """The branches whose model this one starts from, learns from, evaluates or exports."""
        config = branch.config
        if isinstance(config, TrainStage):
            named = {"init_from": config.init_from, "teacher": config.task.taught_by}
            return [parent for key, reference in named.items() for parent in self._source(branch, key, reference)]
        if isinstance(config, EvaluateStage):
            judged = [self.by_id[e.model] for e in self.evaluations if e.stage == branch.id and e.model in self.by_id]
            return judged or [parent for model in config.models for parent in self.fan(model)]
        if isinstance(config, ProbeStage):
            return [parent for model in config.models for parent in self.fan(model)]
        return self.selected(config.model) if isinstance(config, ExportStage) else []

    def _source(self, branch: BranchRecord, key: str, reference: str | None) -> list[BranchRecord]:
        """The branches that a training stage's source or teacher may come from: once known, the one in its status."""
        found = branch.status.get(key)
        if isinstance(found, str) and found in self.by_id:
            return [self.by_id[found]]
        return self.selected(reference) if reference else []

    def tested(self, branch: BranchRecord) -> float | None:
        """The value of a branch's comparison measure in the newest evaluation of its model that has it."""
        name = branch.measure.name
        found = (e.measures[name] for e in reversed(self.evaluations) if e.model == branch.id and name in e.measures)
        return next(found, None)


def read_run(folder: Path) -> Run:
    """Read `runs/<name>`. Raises CheckpointError if the folder holds no pipeline that this version can read."""
    source = folder / "pipeline.yaml"
    if not source.is_file():
        raise CheckpointError(
            f"{folder} is not a run folder, because it has no pipeline.yaml; give one such as runs/quickstart"
        )
    text = source.read_bytes()
    try:
        config = PipelineConfig.model_validate(read_yaml(source))
    except (ConfigError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(
            f"{source} is not a pipeline this version can read ({first}); use the version that made the run"
        ) from error
    record = read_json(folder / "run.json") or {}
    branches = [branch for name, stage in config.stages.items() for branch in read_branches(folder, name, stage)]
    evaluations = [e for branch in branches if branch.config.type == "evaluate" for e in read_evaluations(branch)]
    digest = str(record.get("digest") or hashlib.sha256(text).hexdigest())
    probes = [probe for branch in branches if branch.config.type == "probe" if (probe := read_probe(branch))]
    return Run(folder, config, digest, record, branches, evaluations, probes)


def read_branches(folder: Path, stage: str, config: Stage) -> list[BranchRecord]:
    """The stage itself, or one branch per variant of a stage that fans out."""
    if isinstance(config, TrainStage):
        variants = config.model.variants
        if config.model.fans_out:
            return [read_branch(folder, f"{stage}/{variant}", stage, variant, config) for variant in variants]
        return [read_branch(folder, stage, stage, next(iter(variants), None), config)]
    return [read_branch(folder, stage, stage, None, config)]


def read_branch(folder: Path, id: str, stage: str, variant: str | None, config: Stage) -> BranchRecord:
    """Read `stages/<id>/`."""
    home = folder / "stages" / id
    spec = read_spec(home / "model") or read_spec(home / "init")
    return BranchRecord(
        id=id,
        stage=stage,
        variant=spec.backbone.variant if spec else variant,
        config=config,
        folder=home,
        status=read_json(home / "status.json") or {},
        rows=read_lines(home / "metrics.jsonl"),
        events=read_lines(home / "events.jsonl"),
        surgery=read_json(home / "surgery.json"),
        spec=spec,
    )


def read_evaluations(branch: BranchRecord) -> list[Evaluation]:
    """The models evaluated by one stage, from its evaluation.json and, for classifiers, confusion.npz."""
    assert isinstance(branch.config, EvaluateStage)
    found = read_json(branch.folder / "evaluation.json") or {}
    schema, arrays = schema_of(found), read_arrays(branch.folder / CONFUSION)
    per_class, curves = (read_table(branch.folder / name) for name in (PER_CLASS, PRECISION_RECALL))
    return [
        Evaluation(
            stage=branch.id,
            dataset=branch.config.data,
            model=model,
            classes=arrays["classes"].tolist() if "classes" in arrays else [],
            schema=schema,
            measures=schema.of(figures),
            samples=figures.get("samples"),
            bad_samples=figures.get("bad_samples"),
            confusion=arrays.get(f"arr_{number}"),
            per_class=[row for row in per_class if row.get("model") == model],
            precision_recall=[row for row in curves if row.get("model") == model],
        )
        for number, (model, figures) in enumerate((found.get("models") or {}).items())
    ]


def read_probe(branch: BranchRecord) -> ProbeRecord | None:
    """The results of a probe stage; None if it has not finished."""
    assert isinstance(branch.config, ProbeStage)
    found, data = read_json(branch.folder / "probe.json"), branch.config.data
    if found is None:
        return None
    models = found.get("models") or {}
    return ProbeRecord(branch.id, data.train, data.test, str(found.get("features", "")), schema_of(found), models)


def read_spec(bundle: Path) -> ModelSpec | None:
    """The specification of a bundle, without its weights."""
    found = read_json(bundle / "model.json")
    try:
        return ModelSpec.from_dict(found["spec"]) if found else None
    except (KeyError, TypeError, ModelError):
        return None
