"""The section of a `pretrain` or `finetune` stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.cluster import ResourcesConfig
from pipeline.config.data import DataConfig
from pipeline.config.fields import allowed, show
from pipeline.config.paths import PathText
from pipeline.config.section import Length, Positive
from pipeline.config.stage import StageConfig
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

TEACHER = "task.teacher"  # the setting that names the model that a stage learns from


class TrainStage(StageConfig):
    """A pretraining or fine-tuning stage: one Ray Train job per variant."""

    resolved: ClassVar[Mapping[str, str]] = {"init_from": "the digest of that model"}
    without_effect: ClassVar[Mapping[str, str]] = {
        "micro_batch_size": "the gradient is that of the global batch",
        "resources": "the same global batches on other workers",
        "checkpoint": "keeps what was computed",
        "eval": "measures what was computed",
        "log_every": "reports what was computed",
        "max_skipped_steps": "decides when a stage gives up",
    }

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
    def models_read(self) -> dict[str, str]:
        read = {"init_from": self.init_from, TEACHER: self.task.taught_by}
        return {setting: reference for setting, reference in read.items() if reference is not None}

    @property
    def data_read(self) -> dict[str, str]:
        read = {"data.train": self.data.train, "data.val": self.data.val}
        read |= {f"data.mixture.{name}": name for name in self.data.mixture}
        if knn := self.eval.knn:
            read |= {"eval.knn.train": knn.train, "eval.knn.test": knn.test}
        return {setting: dataset for setting, dataset in read.items() if dataset is not None}

    def faults(self, name: str, stages: Mapping[str, StageConfig], cluster: ResourcesConfig) -> Iterator[str]:
        """Fewer lanes or samples per step than workers."""
        workers = (self.resources or cluster).most_workers or 1
        where = f"stages.{name}.resources.workers" if self.resources else "cluster.workers"
        limits = {"data.lanes": self.data.lanes, "global_batch_size": self.global_batch_size}
        for field, limit in limits.items():
            if workers > limit:
                yield f"stages.{name}.{field}: {limit} is too few for {where} = {workers}, as each needs at least one."

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
