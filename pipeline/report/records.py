"""The records of a run folder: what the report shows, and how its branches belong together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.config.train_stage import TrainStage
from pipeline.metrics.outcome import choose_branch, schema_of
from pipeline.metrics.schema import VAL, Measure, Schema
from pipeline.models.model_spec import ModelSpec
from pipeline.report.files import Row, as_time, is_number


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
    text; `intervals` are those of measures, by name: [low, high].
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
    intervals: dict[str, list[float]] = field(default_factory=dict)


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
    config: StageConfig
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
        chosen = choose_branch({branch.id: branch.status for branch in fan}).best
        return fan if chosen is None else [self.by_id[chosen]]

    def parents(self, branch: BranchRecord) -> list[BranchRecord]:
        """The branches whose model this one starts from, learns from, evaluates or exports."""
        config = branch.config
        if isinstance(config, TrainStage):
            named = {"init_from": config.init_from, "teacher": config.task.taught_by}
            return [parent for key, reference in named.items() for parent in self._source(branch, key, reference)]
        if config.type == "export":
            return [parent for model in config.models_read.values() for parent in self.selected(model)]
        judged = [self.by_id[e.model] for e in self.evaluations if e.stage == branch.id and e.model in self.by_id]
        return judged or [parent for model in config.models_read.values() for parent in self.fan(model)]

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
