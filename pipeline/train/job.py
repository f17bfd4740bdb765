"""What the driver hands to every rank: plain data, fit to travel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.config.schema import DatasetConfig, TrainStage
from pipeline.models.bundle import Preprocess
from pipeline.models.spec import ViTSpec
from pipeline.shards.index import DatasetIndex

STOP = "stop"  # a file in the stage's folder: commit and leave


class MetricSink(Protocol):
    """Where rank 0 sends its metrics besides `metrics.jsonl`."""

    def log(self, step: int, metrics: dict[str, float], time_s: float | None = None) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Dataset:
    """A selection of shards with the settings that give its bytes a meaning."""

    config: DatasetConfig
    index: DatasetIndex


@dataclass(frozen=True)
class TrainJob:
    """One training stage, or one branch of it. Paths are absolute: Ray changes a worker's working directory."""

    folder: Path  # runs/<name>/stages/<id>
    stage: TrainStage
    spec: ViTSpec
    preprocess: Preprocess
    classes: list[str]
    train: Dataset
    val: Dataset | None
    seed: int
    samples_per_epoch: int
    total_steps: int
    warmup_steps: int
    checkpoint_steps: int
    eval_steps: int
    digest: str
    attempt: str  # token of this attempt; a rank of an earlier one must not commit any more
    init: Path | None  # bundle to start from
    resume_from: Path | None  # committed checkpoint to go on from
    sink: MetricSink


@dataclass(frozen=True)
class EvaluateJob:
    """Evaluation of finished models on one data set."""

    folder: Path
    models: dict[str, Path]  # id -> bundle
    data: Dataset
    classes: list[str]
    batch_size: int
    loader_workers: int
    precision: str
