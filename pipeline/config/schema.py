"""The schema of a pipeline file. Each section is strict: an unknown key or a wrong type is an error."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.data import DataConfig, DatasetConfig
from pipeline.config.export import GraphConfig, RegisterConfig, Weights
from pipeline.config.fields import allowed, show
from pipeline.config.paths import PathText, UriText
from pipeline.config.probe import BASELINES, KnnConfig, LinearConfig, MethodsConfig, Pooling, ProbeData
from pipeline.config.section import Length, Positive, Section
from pipeline.config.task import AnyTask, default_task
from pipeline.config.training import (
    CheckpointConfig,
    EngineConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    ResolutionConfig,
    ScheduleConfig,
)
from pipeline.metrics.accuracy import KNN
from pipeline.metrics.schema import VAL, Better, Schema

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

SLOTS = re.compile(r"\d+:\d+")

FOLDER_NAME = "letters, digits, '_', '-' and '.', the first a letter or digit"


class TrackingConfig(Section):
    uri: UriText | None = Field(
        default=None,
        description="MLflow tracking URI; default: MLFLOW_TRACKING_URI, else the SQLite store runs/mlflow.db",
    )
    experiment: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="experiment in MLflow; default: MLFLOW_EXPERIMENT_NAME or _ID, else minivit"
    )
    system_metrics_every_s: Annotated[float, Field(gt=0)] | None = Field(
        default=10.0, description="how often each node's CPU, memory, disk, network and GPUs are sampled; null: never"
    )
    wait_s: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="how long a run that has finished waits for a store that no longer answers"
    )


class ElasticWorkers(Section):
    """As many workers as fit, within bounds: fewer when a node is lost, more when one joins."""

    min: Positive = 1
    max: Positive

    @model_validator(mode="after")
    def in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is above max = {self.max}; set it to at most that")
        return self


class ResourcesConfig(Section):
    """The resources that a stage requests; each worker is one rank."""

    workers: Positive | ElasticWorkers | Literal["auto"] = Field(
        default="auto",
        description="a number, or {min: 1, max: 8}: as many as fit; auto: one per GPU of the cluster, else per CPU",
    )
    cpus_per_worker: Positive | Literal["auto"] = Field(
        default="auto",
        description="auto: a node's CPUs divided among its GPUs; without GPUs 1, or an eighth of a node's CPUs with "
        "workers: auto",
    )
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | Literal["auto"] = Field(
        default="auto", description="auto: 1 if the cluster has any"
    )

    @property
    def most_workers(self) -> int | None:
        """The most workers asked for; None for as many as the cluster has."""
        if self.workers == "auto":
            return None
        return self.workers.max if isinstance(self.workers, ElasticWorkers) else self.workers


class ClusterConfig(ResourcesConfig):
    address: str | None = Field(
        default=None, description="Ray address; default: the cluster at RAY_ADDRESS, else this machine"
    )
    env: list[str] = Field(
        default_factory=list,
        description="names of environment variables that ranks inherit from `run`, in addition to those of networks, "
        "stores and libraries, which they always inherit",
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        default=3, description="restarts after lost workers, in a row and without a new checkpoint in between"
    )
    wait_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="how long a stage waits for its minimum number of workers after losing nodes"
    )
    stall_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0,
        description="if no rank makes progress for this long, all ranks dump their stacks to their logs and restart",
    )

    @field_validator("env")
    @classmethod
    def names_variables(cls, names: list[str]) -> list[str]:
        if not all(map(VARIABLE_NAME.fullmatch, names)):
            raise ValueError("names of environment variables; their values stay out of the config")
        return names


class StageBase(Section):
    resources: ResourcesConfig | None = Field(default=None, description="default: the pipeline's `cluster`")


class TrainStage(StageBase):
    """A pretraining or fine-tuning stage: one Ray Train job per variant."""

    type: Literal["pretrain", "finetune"]
    init_from: PathText | None = Field(
        default=None,
        description="a stage, STAGE/VARIANT, an export, timm:NAME, or a safetensors file of timm, Hugging Face or CLIP",
    )
    model: ModelConfig
    data: DataConfig
    task: AnyTask = Field(default_factory=default_task)
    duration: Length
    global_batch_size: Positive
    micro_batch_size: Positive | None = Field(
        None, description="samples per rank and micro-batch; default: the rank's whole share"
    )
    resolution: ResolutionConfig = ResolutionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="decay of the weights' moving average"
    )
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log_every: Positive = 10
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        default=10, description="how many steps in a row with non-finite gradients are skipped before the run stops"
    )

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        if self.type == "finetune" and self.init_from is None:
            raise ValueError(
                "init_from: missing; set it to the stage, export, timm:NAME or file that the stage fine-tunes"
            )
        if self.init_from is None and self.model.variant is None:
            raise ValueError(
                "model.variant: missing, and there is no init_from to take the model from; set one of them"
            )
        if self.optimizer.freeze and self.init_from is None:
            raise ValueError(
                f"optimizer.freeze: found {self.optimizer.freeze:g}, but without init_from the frozen layers would "
                "stay random; set init_from, or leave freeze out"
            )
        if fault := self.task.lacks():
            raise ValueError(f"task.{fault}")
        if self.task.coupled and self.global_batch_size == 1:
            raise ValueError(
                f"global_batch_size: found 1, but the task {self.task.type} compares samples with each other; use at "
                "least 2"
            )
        if fault := self._mixing_fault():
            raise ValueError(fault)
        if self.global_batch_size > self.data.lanes and self.global_batch_size % self.data.lanes:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is not divisible by data.lanes = {self.data.lanes}; use "
                "a multiple of it, or fewer lanes"
            )
        keep_best, measured = self.checkpoint.keep_best, [VAL + name for name in self.measured.names]
        if keep_best is not None and keep_best not in measured:
            raise ValueError(f"checkpoint.keep_best: found {show(keep_best)}, {allowed(keep_best, measured)}")
        return self

    @property
    def measured(self) -> Schema:
        """What a validation measures: the task's measures, and kNN accuracy if configured."""
        return self.task.measured if self.eval.knn is None else self.task.measured.plus(KNN)

    @property
    def best_by(self) -> tuple[str, Better] | None:
        """The metric that picks the best checkpoint, and which direction is better."""
        keep_best = self.checkpoint.keep_best
        return None if keep_best is None else (keep_best, self.measured.better(keep_best))

    def _mixing_fault(self) -> str | None:
        """Why samples cannot be mixed as `data` asks, as `field: sentence`."""
        parts = {f"data.mixture.{name}.augment": part.augment for name, part in self.data.mixture.items()}
        for path, augment in {"data.augment": self.data.augment, **parts}.items():
            if augment is not None and augment.mixes and (reason := self.task.unmixable()):
                name = "mixup" if augment.mixup else "cutmix"
                return f"{path}.{name}: found {getattr(augment, name)}, but {reason}; set mixup and cutmix to 0"
        return None


class EvaluateStage(StageBase):
    """Every model in `models` on the whole data set, each sample exactly once."""

    type: Literal["evaluate"]
    models: list[PathText] = Field(min_length=1, description="stages, STAGE/VARIANT, paths to exports or timm:NAME")
    data: str = Field(description="name of an entry of `datasets`")
    task: AnyTask | None = Field(
        default=None, description="the task to evaluate the models as; default: their own task, measured as in training"
    )
    batch_size: Positive = 256
    precision: Literal["bf16", "fp32"] = Field(default="fp32", description="precision of weights and activations")
    loader_workers: Annotated[int, Field(ge=0)] = Field(default=1, description="processes per rank that decode images")


class ProbeStage(StageBase):
    """The quality of the frozen features of every model in `models`, on labelled data."""

    type: Literal["probe"]
    models: list[PathText] = Field(
        min_length=1,
        description="stages, STAGE/VARIANT, paths to exports or timm:NAME; and random (the first model's shape with "
        "initial weights) and pixels",
    )
    data: ProbeData
    methods: MethodsConfig = MethodsConfig(knn=KnnConfig(), linear=LinearConfig())
    features: Pooling = Field(
        default="both", description="the class token, the mean of the patches, or both side by side"
    )
    batch_size: Positive = 256
    precision: Literal["bf16", "fp32"] = Field(default="fp32", description="precision of weights and activations")
    loader_workers: Annotated[int, Field(ge=0)] = Field(default=1, description="processes per rank that decode images")

    @model_validator(mode="after")
    def has_a_model(self) -> Self:
        if set(self.models) <= set(BASELINES):
            raise ValueError("models: random and pixels take their shape and images from a model; name one too")
        return self


class ExportStage(StageBase):
    type: Literal["export"]
    model: PathText
    formats: list[str] = Field(default_factory=lambda: ["safetensors"])
    weights: Weights | None = Field(
        default=None,
        description="last, ema, best, step-N or soup-K (the mean of the last K) of the stage's checkpoints; default: "
        "the finished model",
    )
    graph: GraphConfig = GraphConfig()
    register_as: RegisterConfig | None = Field(
        default=None, description="default: not registered in MLflow; only finished models can be"
    )
    license: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="the weights' licence in the Hub's notation, such as apache-2.0, for the model card",
    )


class ReportStage(StageBase):
    type: Literal["report"]


Stage = Annotated[TrainStage | EvaluateStage | ProbeStage | ExportStage | ReportStage, Field(discriminator="type")]


class TrainConfig(Section):
    """What `run` does instead of training; given on the command line."""

    replay_slots: str | None = Field(
        default=None, description="A:B, the slots of one batch to run again with anomaly detection"
    )

    @field_validator("replay_slots")
    @classmethod
    def names_slots(cls, slots: str | None) -> str | None:
        if slots is not None and not SLOTS.fullmatch(slots):
            raise ValueError("the slots A:B of a batch, as in the error that stopped the run")
        return slots


class PipelineConfig(Section):
    """A whole pipeline file."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    runs_dir: PathText = "runs"
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()
    train: TrainConfig = TrainConfig()
    datasets: dict[str, DatasetConfig]
    stages: dict[str, Stage] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def names_a_folder(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(FOLDER_NAME)
        return name

    @field_validator("stages")
    @classmethod
    def stages_name_folders(cls, stages: dict[str, Stage]) -> dict[str, Stage]:
        for name in stages:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name}: this becomes a folder name; use {FOLDER_NAME}")
        return stages

    def resources(self, stage: StageBase) -> ResourcesConfig:
        """The resources that a stage requests: its own section, otherwise the pipeline's."""
        return stage.resources or self.cluster
