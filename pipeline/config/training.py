"""Sections of a training stage other than its data: the model, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.architecture import Activation, FewerPatches, Norm, Pool, Positions
from pipeline.config.paths import PathText
from pipeline.config.probe import OnlineKnnConfig
from pipeline.config.section import Duration, Length, Positive, Rate, Section, Share

Size = int | tuple[int, int]
# Gradient elements per reduction (64 MB): enough to saturate a network, and few enough that the backward pass hides all
# reductions but the last, whatever the model size. A buffer of this size is kept; DeepSpeed's default is two gigabytes.
LARGEST_BUCKET = 1 << 24


class WindowsConfig(Section):
    """Attention within windows, for images much larger than those of pretraining (ViTDet)."""

    size: Positive = Field(
        description="maximum number of patches along each side of a window; windows divide the image evenly"
    )
    global_every: Positive = Field(
        default=3, description="every n-th layer attends to the whole image, counted back from the last"
    )


class ModelConfig(Section):
    """Which MiniViT. `variant` may be a list: the stage fans out.

    Without a variant the model is the one that `init_from` names, whichever branch won. Other unset fields are the
    variant's own, or those of that model.
    """

    resolved: ClassVar[Mapping[str, str]] = {"variant": "the spec"}

    variant: str | list[str] | None = None
    image_size: Size = 224
    patch_size: Size | None = None
    channels: Literal[1, 3] = 3
    embed_dim: Positive | None = None
    depth: Positive | None = None
    num_heads: Positive | None = None
    mlp_dim: Positive | None = None
    norm: Norm | None = None
    activation: Activation | None = None
    eps: Annotated[float, Field(gt=0)] | None = None
    dropout: Rate | None = None
    drop_path: Rate | None = None
    pool: Pool | None = None
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
    positions: Positions | None = None
    fewer_patches: FewerPatches | None = Field(
        default=None, description="how positions fit smaller grids; slice is the tutorial's"
    )
    windows: WindowsConfig | Literal["none"] | None = Field(
        default=None, description="makes layers attend within windows; none: no windows, whatever init_from has"
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
        """The variants named here; empty if the model comes from `init_from`."""
        if self.variant is None:
            return []
        return self.variant if isinstance(self.variant, list) else [self.variant]

    def overrides(self) -> dict[str, Any]:
        """The fields of the variant that this section overrides."""
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
            raise ValueError("sizes: a list of image sizes for mode 'progressive' or 'random', and nothing for 'fixed'")
        return self


class OptimizerConfig(Section):
    name: Literal["adamw", "lamb", "muon", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    lr_batch_size: Positive | None = Field(
        default=None, description="global batch size that lr is given for; lr is scaled to this stage's"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    momentum: Rate = 0.9
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    freeze: Share = Field(
        default=0.0,
        description="share of the encoder's layers, from the bottom, to freeze together with the embedding; 1: train "
        "only the heads",
    )


class ScheduleConfig(Section):
    name: Literal["cosine", "constant", "linear", "wsd"] = "cosine"
    warmup: Duration = Duration(value=0, unit="steps")
    decay: Length | None = Field(
        default=None, description="for wsd: length of the final part, in which the rate decays"
    )
    final_lr_ratio: Share = 0.0

    @model_validator(mode="after")
    def decay_belongs_to_wsd(self) -> Self:
        if (self.name == "wsd") != (self.decay is not None):
            raise ValueError("decay: required for name 'wsd' and not allowed otherwise; set or remove it")
        return self


class EngineConfig(Section):
    without_effect: ClassVar[Mapping[str, str]] = {
        "zero_stage": "the same sums, shared among ranks in another way",
        "compile": "the same mathematics in other kernels",
        "activation_checkpointing": "the same activations, computed twice",
        "deterministic": "the same mathematics in other kernels",
    }

    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = Field(default=False, description="torch.compile of every encoder layer")
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none", description="what the backward pass recomputes: nothing, the feed-forwards, or all layers"
    )
    deterministic: bool = Field(
        default=False, description="bit-identical reruns on GPUs too (CPUs always give them); slower"
    )

    @model_validator(mode="after")
    def keeps_master_weights(self) -> Self:
        if self.zero_stage == 0 and self.precision == "bf16":
            raise ValueError(
                "zero_stage: DeepSpeed keeps no fp32 master weights in bf16 at stage 0; use 1, or precision: fp32"
            )
        return self

    @model_validator(mode="after")
    def compiles_whole_weights(self) -> Self:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile: ZeRO-3 gathers weights in hooks that a compiled layer does not run; use zero_stage 1 or 2"
            )
        return self


class CheckpointConfig(Section):
    """When and where the state is committed, and which commits are kept. The last step is always committed."""

    every: Length = Duration(value=1, unit="epochs")
    every_minutes: Annotated[float, Field(gt=0)] | None = Field(
        default=10.0, description="also save if this much time has passed since the last save; null: only use `every`"
    )
    keep_last: Positive = 2
    keep_every: Length | None = Field(default=None, description="also keep the first checkpoint of every such period")
    keep_best: str | None = Field(
        default=None,
        description="also keep the best checkpoint by this measure of the task, such as val/loss, which is committed "
        "right after its validation",
    )
    storage: PathText | None = Field(
        default=None, description="folder or fsspec URL (s3://bucket/prefix) for checkpoints; default: the run's folder"
    )


class EvalConfig(Section):
    every: Length = Duration(value=1, unit="epochs")
    batch_size: Positive = 256
    knn: OnlineKnnConfig | None = Field(
        default=None, description="also measure the kNN accuracy of the features on labelled data, as val/knn"
    )
