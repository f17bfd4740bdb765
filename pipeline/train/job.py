"""What the driver hands to every rank: plain data, fit to travel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.data import DatasetConfig
from pipeline.config.probe import MethodsConfig, OnlineKnnConfig, Pooling
from pipeline.config.schema import TrainStage
from pipeline.config.task import TaskConfig
from pipeline.errors import Interrupted
from pipeline.models.spec import ModelSpec, Pair
from pipeline.shards.index import DatasetIndex
from pipeline.stream.resolution import size_at
from pipeline.stream.source import Source
from pipeline.train.stall import StallWatch

if TYPE_CHECKING:  # a plan needs data sets, and no torch
    from pipeline.models.bundle import Preprocess

STOP = "stop"  # a file in the stage's folder: commit and leave; it holds one of the reasons below
INTERRUPT, RESIZE = "interrupt", "resize"


def stage_id(folder: Path) -> str:
    """The id, such as `pretrain/micro`, of the stage or branch that a folder `runs/<name>/stages/<id>` belongs to."""
    stages = next((parent for parent in folder.parents if parent.name == "stages"), folder.parent)
    return folder.relative_to(stages).as_posix()


class WorkersChange(Interrupted):
    """A job has committed and left because its nodes change; `leaving` are the ids of those about to be taken away."""

    leaving: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankContext:
    """What the cluster gives each rank besides its job."""

    watch: StallWatch  # of this rank's signs of life
    leaving_nodes: Callable[[], tuple[str, ...]]  # ids of this job's nodes about to be taken away; every rank must ask


@dataclass(frozen=True)
class Dataset:
    """A selection of shards with the settings that give its bytes a meaning."""

    config: DatasetConfig
    index: DatasetIndex


@dataclass(frozen=True)
class KnnJob:
    """Labelled data by which the features of a model are judged while it trains."""

    train: Source
    test: Source
    num_classes: int
    config: OnlineKnnConfig


@dataclass(frozen=True)
class TrainJob:
    """One training stage, or one branch of it. Paths are absolute: Ray changes a worker's working directory."""

    folder: Path  # runs/<name>/stages/<id>
    stage: TrainStage
    spec: ModelSpec
    preprocess: Preprocess
    classes: list[str]
    train: list[Source]
    val: Source | None
    seed: int
    samples_per_epoch: int
    total_steps: int
    warmup_steps: int
    decay_steps: int
    checkpoint_steps: int
    keep_steps: int | None  # one checkpoint of every so many steps stays
    eval_steps: int
    digest: str
    run_ids: dict[str, str]  # the MLflow runs this belongs to
    attempt: str  # token of this attempt; a rank of an earlier one must not commit any more
    checkpoints: str  # path or URL of the stage's checkpoints
    init: Path | None  # bundle to start from
    resume_from: str | None  # name of the committed checkpoint to go on from
    measured: dict[int, dict[str, float]]  # step -> metrics of the checkpoints committed so far
    knn: KnnJob | None = None

    def sizes(self) -> Callable[[int], Pair]:
        """The image size (height, width) of a step, as a function that travels to the loader's processes."""
        return partial(
            size_at,
            total_steps=self.total_steps,
            base_size=self.spec.backbone.image_size,
            resolution=self.stage.resolution,
            seed=self.seed,
        )


@dataclass(frozen=True)
class EvaluateJob:
    """Evaluation of finished models on one data set."""

    folder: Path
    models: dict[str, Path]  # id -> bundle
    task: TaskConfig  # which they are evaluated as
    data: Source
    classes: list[str]
    batch_size: int
    loader_workers: int
    precision: str


@dataclass(frozen=True)
class ProbedModel:
    """A bundle, or a baseline beside it: `random` or `pixels`."""

    path: Path
    baseline: str | None = None


@dataclass(frozen=True)
class ProbeJob:
    """What the frozen features of models are worth, fitted to one labelled data set and judged by another."""

    folder: Path
    models: dict[str, ProbedModel]  # by name
    train: Source
    test: Source
    classes: list[str]
    methods: MethodsConfig
    features: Pooling
    seed: int  # of initial weights
    batch_size: int
    loader_workers: int
    precision: str
    done: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> results of an earlier start
