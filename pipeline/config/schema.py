"""The schema of a pipeline file. Each section is strict: an unknown key or a wrong type is an error."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Duration, Section

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

SLOTS = re.compile(r"\d+:\d+")

FOLDER_NAME = "letters, digits, '_', '-' and '.', the first a letter or digit"

MAX_BLOCK = 1000  # samples after which the weights of a mixture come out even, at most

Size = int | tuple[int, int]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class TrackingConfig(Section):
    uri: str | None = Field(default=None, description="MLflow tracking URI; default is the SQLite store runs/mlflow.db")
    experiment: str = "minivit"


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
    """What one stage asks of the cluster; each worker is one rank."""

    workers: Positive | ElasticWorkers = Field(default=1, description="a number, or {min: 1, max: 8}: as many as fit")
    cpus_per_worker: Positive = 1
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0

    @property
    def min_workers(self) -> int:
        return self.workers.min if isinstance(self.workers, ElasticWorkers) else self.workers

    @property
    def max_workers(self) -> int:
        return self.workers.max if isinstance(self.workers, ElasticWorkers) else self.workers


class ClusterConfig(ResourcesConfig):
    address: str | None = Field(default=None, description="Ray address; default: a running cluster, else this machine")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        default=3, description="restarts in a row after lost workers without a new checkpoint between them"
    )
    wait_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="how long a stage waits for its least workers when nodes are lost"
    )
    stall_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0,
        description="a rank without progress for so long writes all its stacks to its log and is restarted",
    )


class CacheConfig(Section):
    """A folder on each machine for what was read of remote shards; the least recently used goes first."""

    folder: str
    max_gigabytes: Annotated[float, Field(gt=0)]


class DatasetConfig(Section):
    """One set of WebDataset shards. `shards` is a folder, a glob or a brace pattern, local or any fsspec URL."""

    shards: str
    make: str | None = Field(default=None, description="built-in data set that `run` writes there if it is missing")
    classes: list[str] | None = Field(default=None, description="label names; default: those in the index")
    image_key: str = Field(default="png;jpg;jpeg;webp", description="extensions of the image member, first match wins")
    label_key: str = Field(default="cls", description="extension of the label member, a decimal class number")
    cache: CacheConfig | None = Field(default=None, description="local copy of remote shards; default: none")
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

    crop: Literal["none", "padded", "simple", "random_resized"] = Field(
        default="random_resized", description="simple: the shorter side fits, the rest is cut off at random (DeiT III)"
    )
    padding: Share = Field(default=0.125, description="for crop: padded, as a share of the image side")
    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    rand_augment: RandAugmentConfig | None = None
    three_augment: bool = Field(default=False, description="grey, solarised or blurred, one of the three (DeiT III)")
    erase: Share = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("scale", "ratio")
    @classmethod
    def ordered(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not 0 < limits[0] <= limits[1]:
            raise ValueError("a list of 2, the smaller first, both above 0")
        return limits


class MixturePart(Section):
    """The share of one data set in a mixture, and how its samples are treated there."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    augment: AugmentConfig | None = Field(default=None, description="default: the stage's data.augment")
    label_map: dict[str, str] = Field(
        default_factory=dict, description="names of its classes that mean a class of another name here"
    )


class DataConfig(Section):
    train: str | None = Field(default=None, description="name of an entry of `datasets`")
    mixture: dict[str, MixturePart] = Field(
        default_factory=dict, description="entries of `datasets` and their weights, instead of `train`"
    )
    val: str | None = Field(
        default=None, description="name of an entry of `datasets`, used during training and to pick the best branch"
    )
    augment: AugmentConfig = AugmentConfig()
    lanes: Positive = Field(default=64, description="C of the sample order; never changes within a run")
    window: Positive = Field(default=512, description="samples shuffled together within a lane")
    loader_workers: Annotated[int, Field(ge=0)] = 1
    exclude: str | None = Field(
        default=None, description="quarantine manifest of an earlier run: its samples are left out"
    )

    @model_validator(mode="after")
    def train_or_mixture(self) -> Self:
        if (self.train is None) == (not self.mixture):
            raise ValueError("train: the name of an entry of `datasets`, or else `mixture`; set one of the two")
        if sum(self.weights) > MAX_BLOCK:
            raise ValueError(
                f"mixture: the weights come out even after {sum(self.weights)} samples at the soonest; "
                f"round them so that {MAX_BLOCK} are enough"
            )
        return self

    @property
    def parts(self) -> dict[str, MixturePart]:
        """The training data sets by name; one alone is a mixture of one."""
        return self.mixture or {str(self.train): MixturePart()}

    @property
    def weights(self) -> list[int]:
        """Those of `parts` as the smallest whole numbers of the same ratio."""
        exact = [Fraction(repr(part.weight)) for part in self.parts.values()]  # as written: 0.1 is a tenth
        whole = [int(weight * math.lcm(*(w.denominator for w in exact))) for weight in exact]
        return [weight // math.gcd(*whole) for weight in whole]


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
    activation: Literal["relu", "gelu", "quick_gelu"] | None = None
    eps: float | None = None
    dropout: Share | None = None
    drop_path: Share | None = None
    pool: Literal["cls", "avg"] | None = None
    registers: Annotated[int, Field(ge=0)] | None = None
    class_token: bool | None = None
    dist_token: bool | None = None
    mask_token: bool | None = None
    prefix_positions: bool | None = Field(
        default=None, description="whether the tokens before the patches have positions"
    )
    qk_norm: bool | None = None
    embed_norm: bool | None = Field(default=None, description="a norm before the encoder, as in CLIP")
    layer_scale: float | None = None
    positions: Literal["learned", "sincos", "none"] | None = None
    fewer_patches: Literal["resize", "slice"] | None = Field(
        default=None, description="what positions do on smaller grids; slice is the tutorial's"
    )
    init: Literal["torch", "timm", "mae"] | None = Field(
        default=None, description="initial weights; default: torch's (the tutorial's) for post-norm, else MAE's"
    )

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
        base = {"variant", "image_size", "channels", "init"}
        return {k: v for k, v in self.model_dump(exclude=base).items() if v is not None}


class ResolutionConfig(Section):
    """Image size per step: fixed (the model's), progressive over the run, or drawn per step from `sizes`.

    With `patch_sizes` the patch is drawn per step too, in each mode (FlexiViT, Beyer et al. 2023).
    """

    mode: Literal["fixed", "progressive", "random"] = "fixed"
    sizes: list[Positive] = Field(default_factory=list)
    patch_sizes: list[Positive] = Field(default_factory=list)

    @model_validator(mode="after")
    def sizes_fit_mode(self) -> Self:
        if (self.mode == "fixed") != (not self.sizes):
            raise ValueError("sizes: a list of image sizes for mode 'progressive' or 'random', nothing for 'fixed'")
        return self


class ClassificationConfig(Section):
    type: Literal["classification"] = "classification"
    label_smoothing: Share = 0.0


class OptimizerConfig(Section):
    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    lr_batch_size: Positive | None = Field(
        default=None, description="global batch that lr is meant for; it is scaled to this stage's"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Share, Share] = (0.9, 0.999)
    momentum: Share = 0.9
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0


class ScheduleConfig(Section):
    name: Literal["cosine", "constant", "linear", "wsd"] = "cosine"
    warmup: Duration = Duration(value=0, unit="steps")
    decay: Duration | None = Field(default=None, description="for wsd: the last part, in which the rate falls")
    final_lr_ratio: Share = 0.0

    @model_validator(mode="after")
    def decay_belongs_to_wsd(self) -> Self:
        if (self.name == "wsd") != (self.decay is not None):
            raise ValueError("decay: the length of the last part, for name 'wsd' and for no other; set it there")
        return self


class EngineConfig(Section):
    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = Field(default=False, description="torch.compile of every encoder layer")
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none", description="what the backward pass computes again: nothing, the feed-forwards, or all layers"
    )

    @model_validator(mode="after")
    def keeps_master_weights(self) -> Self:
        if self.zero_stage == 0 and self.precision == "bf16":
            raise ValueError(
                "zero_stage: DeepSpeed keeps no fp32 master weights in bf16 at stage 0; take 1, or precision: fp32"
            )
        return self

    @model_validator(mode="after")
    def compiles_whole_weights(self) -> Self:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile: ZeRO-3 gathers weights in hooks that a compiled layer does not run; take zero_stage 1 or 2"
            )
        return self


class CheckpointConfig(Section):
    """When the state is committed, where, and which commits stay. The last step is always committed."""

    every: Duration = Duration(value=1, unit="epochs")
    every_minutes: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="and whenever so much time has passed since the last"
    )
    keep_last: Positive = 2
    keep_every: Duration | None = Field(default=None, description="and the first one of every such length")
    keep_best: Literal["val/loss", "val/accuracy", "val/top5"] | None = Field(
        default=None, description="and the best by this metric of the validation before it"
    )
    storage: str | None = Field(
        default=None, description="folder or fsspec URL (s3://bucket/prefix) for checkpoints; default: the run's folder"
    )


class EvalConfig(Section):
    every: Duration = Duration(value=1, unit="epochs")
    batch_size: Positive = 256


class StageBase(Section):
    resources: ResourcesConfig | None = Field(default=None, description="default: the pipeline's `cluster`")


class TrainStage(StageBase):
    """A pretraining or fine-tuning stage: one Ray Train job per variant."""

    type: Literal["pretrain", "finetune"]
    init_from: str | None = Field(
        default=None,
        description="a stage, STAGE/VARIANT, a path to an export, timm:NAME, or a safetensors file of timm's or CLIP's",
    )
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
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        default=10, description="steps in a row whose gradient is not finite that are skipped before the run stops"
    )

    @model_validator(mode="after")
    def fits_together(self) -> Self:
        if self.type == "finetune" and self.init_from is None:
            raise ValueError(
                "init_from: missing, as a finetune stage starts from a stage, an export, timm:NAME or a file; set it"
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
    models: list[str] = Field(min_length=1, description="stages, STAGE/VARIANT, paths to exports or timm:NAME")
    data: str = Field(description="name of an entry of `datasets`")
    batch_size: Positive = 256


class ExportStage(StageBase):
    type: Literal["export"]
    model: str
    formats: list[str] = Field(default_factory=lambda: ["safetensors"])


class ReportStage(StageBase):
    type: Literal["report"]


Stage = Annotated[TrainStage | EvaluateStage | ExportStage | ReportStage, Field(discriminator="type")]


class TrainConfig(Section):
    """What `run` does instead of training; given on the command line."""

    replay_slots: str | None = Field(
        default=None, description="A:B, the slots of one batch to run again with anomaly detection"
    )

    @field_validator("replay_slots")
    @classmethod
    def names_slots(cls, slots: str | None) -> str | None:
        if slots is not None and not SLOTS.fullmatch(slots):
            raise ValueError("the slots A:B of a batch, as the error that stopped the run names them")
        return slots


class PipelineConfig(Section):
    """A whole pipeline file."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    runs_dir: str = "runs"
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
                raise ValueError(f"{name}: its name is a folder's name; take {FOLDER_NAME}")
        return stages

    def resources(self, stage: StageBase) -> ResourcesConfig:
        """What a stage asks of the cluster: its own section, else the pipeline's."""
        return stage.resources or self.cluster
