"""The schema of a pipeline file. Each section is strict: an unknown key or a wrong type is an error."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMB]?)\s*(epochs?|steps?|samples?)\s*")
MULTIPLIER = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}

Size = int | tuple[int, int]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of strings to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)


class Duration(Section):
    """A typed length of training: `10 epochs`, `5000 steps`, `1.2M samples`."""

    value: float
    unit: Literal["epochs", "steps", "samples"]

    @model_validator(mode="before")
    @classmethod
    def parse(cls, raw: Any) -> Any:
        if isinstance(raw, (Duration, dict)):
            return raw
        match = DURATION.fullmatch(raw) if isinstance(raw, str) else None
        if match is None:
            raise ValueError("a duration such as '10 epochs', '5000 steps' or '1.2M samples'")
        number, multiplier, unit = match.groups()
        return {"value": float(number) * MULTIPLIER[multiplier], "unit": unit.rstrip("s") + "s"}

    def steps(self, samples_per_epoch: int, global_batch_size: int) -> int:
        """Number of optimiser steps, rounded up, of this length over a data set."""
        if self.unit == "steps":
            return math.ceil(self.value)
        samples = self.value * samples_per_epoch if self.unit == "epochs" else self.value
        return math.ceil(samples / global_batch_size)

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"


class TrackingConfig(Section):
    uri: str | None = Field(None, description="MLflow tracking URI; default is the SQLite store runs/mlflow.db")
    experiment: str = "minivit"


class ResourcesConfig(Section):
    """What one stage asks of the cluster; each worker is one rank."""

    workers: Positive = 1
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0


class ClusterConfig(ResourcesConfig):
    address: str | None = Field(None, description="Ray address; default: a running cluster if there is one, else this machine")
    max_restarts: Annotated[int, Field(ge=0)] = 3


class DatasetConfig(Section):
    """One set of WebDataset shards. `shards` is a folder, a glob or a brace pattern, local or any fsspec URL."""

    shards: str
    make: str | None = Field(None, description="built-in data set that `run` writes there if it is missing")
    classes: list[str] | None = Field(None, description="label names; default: those in the index")
    image_key: str = Field("png;jpg;jpeg;webp", description="extensions of the image member, first match wins")
    label_key: str = Field("cls", description="extension of the label member, a decimal class number")
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class RandAugmentConfig(Section):
    ops: Positive = 2
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9


class AugmentConfig(Section):
    """Training-time augmentation; all of it is drawn from (seed, slot)."""

    crop: Literal["none", "padded", "random_resized"] = "random_resized"
    padding: Share = Field(0.125, description="for crop: padded, as a share of the image side")
    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    rand_augment: RandAugmentConfig | None = None
    erase: Share = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0


class DataConfig(Section):
    train: str = Field(description="name of an entry of `datasets`")
    val: str | None = Field(None, description="name of an entry of `datasets`, used during training and to pick the best branch")
    augment: AugmentConfig = AugmentConfig()
    lanes: Positive = Field(64, description="C of the sample order; never changes within a run")
    window: Positive = Field(512, description="samples shuffled together within a lane")
    loader_workers: Annotated[int, Field(ge=0)] = 1
    exclude: str | None = Field(None, description="quarantine manifest of an earlier run: its samples are left out")


class ModelConfig(Section):
    """Which MiniViT. `variant` may be a list: the stage fans out. Unset fields are the variant's own."""

    variant: str | list[str]
    image_size: Size = 224
    patch_size: Size | None = None
    channels: Literal[1, 3] = 3
    embed_dim: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    mlp_dim: Positive | None = None
    norm: Literal["pre", "post"] | None = None
    activation: Literal["relu", "gelu"] | None = None
    eps: float | None = None
    dropout: Share | None = None
    drop_path: Share | None = None
    pool: Literal["cls", "avg"] | None = None
    registers: Annotated[int, Field(ge=0)] | None = None
    class_token: bool | None = None
    qk_norm: bool | None = None
    layer_scale: float | None = None

    @field_validator("variant")
    @classmethod
    def distinct(cls, variant: str | list[str]) -> str | list[str]:
        if isinstance(variant, list) and (not variant or len(set(variant)) < len(variant)):
            raise ValueError("a variant name, or a list of different ones")
        return variant

    @property
    def variants(self) -> list[str]:
        return self.variant if isinstance(self.variant, list) else [self.variant]

    def overrides(self) -> dict[str, Any]:
        """The fields of the variant that this section sets itself."""
        base = {"variant", "image_size", "channels"}
        return {k: v for k, v in self.model_dump(exclude=base).items() if v is not None}


class ResolutionConfig(Section):
    """Image size per step: fixed (the model's), progressive over the run, or drawn per step from `sizes`."""

    mode: Literal["fixed", "progressive", "random"] = "fixed"
    sizes: list[Positive] = []

    @model_validator(mode="after")
    def sizes_fit_mode(self) -> Self:
        if (self.mode == "fixed") != (not self.sizes):
            raise ValueError("sizes: a list of image sizes for mode 'progressive' or 'random', nothing for 'fixed'")
        return self


class ClassificationConfig(Section):
    type: Literal["classification"] = "classification"
    label_smoothing: Share = 0.0


class OptimizerConfig(Section):
    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.9
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0


class ScheduleConfig(Section):
    name: Literal["cosine", "constant", "linear"] = "cosine"
    warmup: Duration = Duration(value=0, unit="steps")
    final_lr_ratio: Share = 0.0


class EngineConfig(Section):
    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["bf16", "fp32"] = "bf16"


class CheckpointConfig(Section):
    every: Duration = Duration(value=1, unit="epochs")
    keep_last: Positive = 2


class EvalConfig(Section):
    every: Duration = Duration(value=1, unit="epochs")
    batch_size: Positive = 256


class StageBase(Section):
    resources: ResourcesConfig | None = Field(None, description="default: the pipeline's `cluster`")


class TrainStage(StageBase):
    """A pretraining or fine-tuning stage: one Ray Train job per variant."""

    type: Literal["pretrain", "finetune"]
    init_from: str | None = Field(None, description="a stage, STAGE/VARIANT, or a path to an export")
    model: ModelConfig
    data: DataConfig
    task: ClassificationConfig = ClassificationConfig()
    duration: Duration
    global_batch_size: Positive
    micro_batch_size: Positive | None = Field(None, description="samples per rank and micro-step; default: the rank's whole share")
    resolution: ResolutionConfig = ResolutionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="decay of the weights' moving average")
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    log_every: Positive = 10

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        if self.type == "finetune" and self.init_from is None:
            raise ValueError("init_from: a finetune stage starts from a stage or a path to an export; set it")
        if self.global_batch_size > self.data.lanes and self.global_batch_size % self.data.lanes:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is not divisible by data.lanes = {self.data.lanes}; "
                "take a multiple of it, or fewer lanes"
            )
        return self


class EvaluateStage(StageBase):
    """Every model in `models` on the whole data set, each sample exactly once."""

    type: Literal["evaluate"]
    models: list[str] = Field(min_length=1, description="stages, STAGE/VARIANT or paths to exports")
    data: str = Field(description="name of an entry of `datasets`")
    batch_size: Positive = 256


class ExportStage(StageBase):
    type: Literal["export"]
    model: str
    formats: list[str] = ["safetensors"]


class ReportStage(StageBase):
    type: Literal["report"]


Stage = Annotated[TrainStage | EvaluateStage | ExportStage | ReportStage, Field(discriminator="type")]


class PipelineConfig(Section):
    """A whole pipeline file."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    runs_dir: str = "runs"
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()
    datasets: dict[str, DatasetConfig]
    stages: dict[str, Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def names_resolve(self) -> Self:
        for name in (self.name, *self.stages):
            if not NAME.fullmatch(name):
                raise ValueError(f"name: {name!r} must consist of letters, digits, '_', '-' and '.', as it names a folder")
        return self
