"""The jobs that the driver sends to every rank: plain, serialisable data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.data import DatasetConfig
from pipeline.config.probe import MethodsConfig, OnlineKnnConfig, Pooling
from pipeline.config.task import TaskConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import Interrupted
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import Pair
from pipeline.shards.index import DatasetIndex
from pipeline.stream.resolution import size_at
from pipeline.stream.source import Source
from pipeline.train.stall import StallWatch

if TYPE_CHECKING:  # a plan needs data sets, but not torch
    from pipeline.models.bundle import Preprocess

STOP = "stop"  # a file in the stage's folder that asks to commit and leave; it contains one of the reasons below
INTERRUPT, RESIZE = "interrupt", "resize"


def stage_id(folder: Path) -> str:
    """The id, such as `pretrain/micro`, of the stage or branch with the folder `runs/<name>/stages/<id>`."""
    stages = next((parent for parent in folder.parents if parent.name == "stages"), folder.parent)
    return folder.relative_to(stages).as_posix()


class WorkersChange(Interrupted):
    """A job committed and left because its nodes change; `leaving` are the ids of nodes about to be taken away."""

    leaving: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankContext:
    """What the cluster provides to each rank besides its job."""

    watch: StallWatch  # records this rank's signs of life
    leaving_nodes: Callable[[], tuple[str, ...]]  # ids of this job's nodes about to be taken away; every rank must ask


@dataclass(frozen=True)
class Dataset:
    """A selection of shards with the settings to interpret them."""

    config: DatasetConfig
    index: DatasetIndex


@dataclass(frozen=True)
class KnnJob:
    """Labelled data to evaluate the features of a model while it trains."""

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
    keep_steps: int | None  # keep one checkpoint every this many steps
    eval_steps: int
    digest: str
    run_ids: dict[str, str]  # the MLflow runs that this job belongs to
    attempt: str  # token of this attempt; ranks of earlier attempts must no longer commit
    checkpoints: str  # path or URL of the stage's checkpoints
    init: Path | None  # bundle to start from
    resume_from: str | None  # name of the committed checkpoint to resume from
    measured: dict[int, dict[str, float]]  # step -> metrics of the checkpoints committed so far
    knn: KnnJob | None = None

    def sizes(self) -> Callable[[int], Pair]:
        """Step -> image size (height, width), as a function that can be pickled for the loader's processes."""
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
    task: TaskConfig  # the task to evaluate them on
    data: Source
    classes: list[str]
    batch_size: int
    loader_workers: int
    precision: str


@dataclass(frozen=True)
class ProbedModel:
    """A bundle, or a baseline for it: `random` or `pixels`."""

    path: Path
    baseline: str | None = None


@dataclass(frozen=True)
class ProbeJob:
    """Evaluation of the frozen features of models, fitted on one labelled data set and tested on another."""

    folder: Path
    models: dict[str, ProbedModel]  # by name
    train: Source
    test: Source
    classes: list[str]
    methods: MethodsConfig
    features: Pooling
    seed: int  # for initial weights
    batch_size: int
    loader_workers: int
    precision: str
    done: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> results of earlier starts
