"""The schema of a pipeline file. Each section is strict: an unknown key or a wrong type is an error."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Duration, Section

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

FOLDER_NAME = "letters, digits, '_', '-' and '.', the first a letter or digit"

Size = int | tuple[int, int]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class TrackingConfig(Section):
    uri: str | None = Field(default=None, description="MLflow tracking URI; default is the SQLite store runs/mlflow.db")
    experiment: str = "minivit"


class ResourcesConfig(Section):
    """What one stage asks of the cluster; each worker is one rank."""

    workers: Positive = 1
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0


class ClusterConfig(ResourcesConfig):
    address: str | None = Field(default=None, description="Ray address; default: a running cluster, else this machine")
    max_restarts: Annotated[int, Field(ge=0)] = 3


class DatasetConfig(Section):
    """One set of WebDataset shards. `shards` is a folder, a glob or a brace pattern, local or any fsspec URL."""

    shards: str
    make: str | None = Field(default=None, description="built-in data set that `run` writes there if it is missing")
    classes: list[str] | None = Field(default=None, description="label names; default: those in the index")
    image_key: str = Field(default="png;jpg;jpeg;webp", description="extensions of the image member, first match wins")
    label_key: str = Field(default="cls", description="extension of the label member, a decimal class number")
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def one_mean_per_std(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"std: {len(self.std)} values for the {len(self.mean)} of mean; give one per channel in each"
            )
        return self


class RandAugmentConfig(Section):
    ops: Positive = 2
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9


class AugmentConfig(Section):
    """Training-time augmentation; all of it is drawn from (seed, slot)."""

    crop: Literal["none", "padded", "random_resized"] = "random_resized"
    padding: Share = Field(default=0.125, description="for crop: padded, as a share of the image side")
    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    rand_augment: RandAugmentConfig | None = None
    erase: Share = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("scale", "ratio")
    @classmethod
    def ordered(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not 0 < limits[0] <= limits[1]:
            raise ValueError("a list of 2, the smaller first, both above 0")
        return limits


class DataConfig(Section):
    train: str = Field(description="name of an entry of `datasets`")
    val: str | None = Field(
        None, description="name of an entry of `datasets`, used during training and to pick the best branch"
    )
    augment: AugmentConfig = AugmentConfig()
    lanes: Positive = Field(default=64, description="C of the sample order; never changes within a run")
    window: Positive = Field(default=512, description="samples shuffled together within a lane")
    loader_workers: Annotated[int, Field(ge=0)] = 1
    exclude: str | None = Field(
        default=None, description="quarantine manifest of an earlier run: its samples are left out"
    )


class ModelConfig(Section):
    """Which MiniViT. `variant` may be a list: the stage fans out.

    Without a variant the model is the one that `init_from` names, whichever branch won. Other unset fields are the
    variant's own, or those of that model.
    """

    variant: str | list[str] | None = None
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
    positions: Literal["learned", "sincos", "none"] | None = None

    @field_validator("variant")
    @classmethod
    def distinct(cls, variant: str | list[str] | None) -> str | list[str] | None:
        if isinstance(variant, list) and (not variant or len(set(variant)) < len(variant)):
            raise ValueError("a variant name, or a list of different ones")
        return variant

    @field_validator("image_size", "patch_size")
    @classmethod
    def positive(cls, size: Size | None) -> Size | None:
        if size is not None and min(size if isinstance(size, tuple) else (size,)) <= 0:
            raise ValueError("pixels above 0, one number for a square or [height, width]")
        return size

    @property
    def fans_out(self) -> bool:
        return isinstance(self.variant, list)

    @property
    def variants(self) -> list[str]:
        """The variants named here; empty when the model is that of `init_from`."""
        if self.variant is None:
            return []
        return self.variant if isinstance(self.variant, list) else [self.variant]

    def overrides(self) -> dict[str, Any]:
        """The fields of the variant that this section sets itself."""
        base = {"variant", "image_size", "channels"}
        return {k: v for k, v in self.model_dump(exclude=base).items() if v is not None}


class ResolutionConfig(Section):
    """Image size per step: fixed (the model's), progressive over the run, or drawn per step from `sizes`."""

    mode: Literal["fixed", "progressive", "random"] = "fixed"
    sizes: list[Positive] = Field(default_factory=list)

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

    @model_validator(mode="after")
    def keeps_master_weights(self) -> Self:
        if self.zero_stage == 0 and self.precision == "bf16":
            raise ValueError(
                "zero_stage: DeepSpeed keeps no fp32 master weights in bf16 at stage 0; take 1, or precision: fp32"
            )
        return self


class CheckpointConfig(Section):
    every: Duration = Duration(value=1, unit="epochs")
    keep_last: Positive = 2


class EvalConfig(Section):
    every: Duration = Duration(value=1, unit="epochs")
    batch_size: Positive = 256


class StageBase(Section):
    resources: ResourcesConfig | None = Field(default=None, description="default: the pipeline's `cluster`")


class TrainStage(StageBase):
    """A pretraining or fine-tuning stage: one Ray Train job per variant."""

    type: Literal["pretrain", "finetune"]
    init_from: str | None = Field(default=None, description="a stage, STAGE/VARIANT, or a path to an export")
    model: ModelConfig
    data: DataConfig
    task: ClassificationConfig = ClassificationConfig()
    duration: Duration
    global_batch_size: Positive
    micro_batch_size: Positive | None = Field(
        None, description="samples per rank and micro-step; default: the rank's whole share"
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

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        if self.type == "finetune" and self.init_from is None:
            raise ValueError(
                "init_from: missing, as a finetune stage starts from a stage or a path to an export; set it"
            )
        if self.init_from is None and self.model.variant is None:
            raise ValueError(
                "model.variant: missing, and there is no init_from to take the model from; set one of them"
            )
        if self.duration.value == 0:
            raise ValueError("duration: found '0', expected a length above 0")
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
    formats: list[str] = Field(default_factory=lambda: ["safetensors"])


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
                raise ValueError(f"{name}: its name is a folder's name; take {FOLDER_NAME}")
        return stages

    def resources(self, stage: StageBase) -> ResourcesConfig:
        """What a stage asks of the cluster: its own section, else the pipeline's."""
        return stage.resources or self.cluster
