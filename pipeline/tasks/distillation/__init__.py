"""Distillation: a student learns the logits (DeiT, Touvron et al. 2021) or tokens of a frozen teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.config.paths import PathText
from pipeline.config.section import Rate, Share
from pipeline.errors import ModelError
from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.metrics.schema import LOSS, Schema
from pipeline.models.model_spec import ModelSpec, classifier_heads
from pipeline.models.spec import HeadSpec, ViTSpec
from pipeline.tasks.distillation.classes import shared_classes
from pipeline.tasks.task import BaseTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.models.spec import Pair
    from pipeline.tasks.base import TaskModule

FEATURES = Schema((LOSS,), "loss")
PROJECTION = "projection"  # the head that predicts the teacher's features

Tokens = Literal["patches", "cls"]


class Task(BaseTask):
    """With `hard` and `soft` the student is a classifier and its data are labelled; `features` needs no labels."""

    judged_alone: ClassVar[bool] = False
    resolved: ClassVar[Mapping[str, str]] = {"teacher": "the digest of that model"}
    without_effect: ClassVar[Mapping[str, str]] = {"shard": "the same weights, gathered layer by layer"}

    type: Literal["distillation"] = "distillation"
    teacher: PathText | None = Field(
        default=None,
        description="a stage, STAGE/VARIANT, an export, timm:NAME, or a safetensors file, as for init_from",
    )
    shard: bool = Field(
        default=False, description="each rank keeps a share of the teacher's weights, gathered layer by layer"
    )
    signal: Literal["hard", "soft", "features"] = Field(
        default="features",
        description="what the student learns from the teacher: its top class, its probabilities, or its tokens",
    )
    dist_token: bool = Field(
        default=True,
        description="hard and soft: a [DIST] token learns from the teacher and CLS from the labels; else CLS from both",
    )
    share: Share = Field(default=0.5, description="hard and soft: the teacher's share of the loss")
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=3.0, description="soft: divides the logits of both, which raises small probabilities"
    )
    label_smoothing: Rate = Field(default=0.0, description="hard and soft: smoothing of the labels")
    tokens: tuple[Tokens, ...] = Field(
        default=("patches", "cls"), description="features: tokens to learn from, with equal weight"
    )
    loss: Literal["cosine", "smooth_l1"] = Field(default="cosine", description="features: distance between two tokens")

    @field_validator("tokens")
    @classmethod
    def distinct(cls, tokens: tuple[Tokens, ...]) -> tuple[Tokens, ...]:
        if not tokens or len(set(tokens)) < len(tokens):
            raise ValueError("patches, cls or both")
        return tokens

    @property
    def answers(self) -> bool:
        """Whether the student learns to classify rather than to predict features."""
        return self.signal != "features"

    @property
    def targets(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("class_id",) if self.answers else ()

    @property
    def measured(self) -> Schema:  # type: ignore[override]
        return CLASSIFICATION if self.answers else FEATURES

    @property
    def taught_by(self) -> str | None:
        return self.teacher

    @property
    def shards_teacher(self) -> bool:
        return self.shard

    def lacks(self) -> str | None:
        if self.teacher is not None:
            return None
        return "teacher: missing; set it to a stage, STAGE/VARIANT, an export, timm:NAME or a safetensors file"

    def backbone_fields(self) -> dict[str, Any]:
        return {"dist_token": self.dist_token} if self.answers else {}

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        return classifier_heads(backbone, num_classes)

    def model_spec(self, backbone: ViTSpec, num_classes: int, teacher: ModelSpec | None = None) -> ModelSpec:
        """A classifier, or a backbone with a head that predicts the teacher's features."""
        self.check(backbone)
        if self.answers:
            return ModelSpec(backbone, self.heads(backbone, num_classes))
        assert teacher is not None
        head = HeadSpec("feature_projection", teacher.backbone.embed_dim)
        return ModelSpec(backbone, {PROJECTION: head}, self.type)

    def check(self, backbone: ViTSpec) -> None:
        if not self.answers and "cls" in self.tokens and not backbone.tokens.cls:
            raise ModelError(
                "task.tokens: 'cls' needs a class token, which the student lacks; set tokens: [patches], or "
                "class_token: true"
            )

    def check_teacher(
        self, student: ModelSpec, classes: Sequence[str] | None, teacher: ModelSpec, names: Sequence[str] | None
    ) -> None:
        ours, theirs = student.backbone.channels, teacher.backbone.channels
        if ours != theirs:
            raise ModelError(
                f"it takes images of {theirs} channels, but the student's have {ours}; set model.channels to "
                f"{theirs}, or use another teacher"
            )
        if not self.answers:
            if "cls" in self.tokens and not teacher.backbone.tokens.cls:
                raise ModelError("it has no class token to learn from; set tokens: [patches], or use another teacher")
            return
        if teacher.heads.keys() != classifier_heads(teacher.backbone, 1).keys():
            raise ModelError(
                f"it is a {teacher.task} model that predicts no classes; set signal: features, or use a classifier as "
                "teacher"
            )
        if classes is not None:
            shared_classes(classes, names, teacher.num_classes)

    def forward_flops(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Operations of the student, including the head that is dropped later; excludes the teacher."""
        from pipeline.models.heads import head_kind
        from pipeline.models.model_costs import forward_flops
        from pipeline.models.spec import whole_patches

        grid, head = whole_patches(image_size, patch), spec.heads.get(PROJECTION)
        projection = head_kind(head.kind).flops(head, spec.backbone, grid) if head else 0
        return forward_flops(spec, image_size, patch) + projection

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        """Expects `teacher` to be the path of a bundle; a finished student of features predicts without one."""
        from pipeline.models.bundle import load_bundle
        from pipeline.tasks.distillation.features import FeatureDistillation
        from pipeline.tasks.distillation.logits import LogitDistillation
        from pipeline.tasks.distillation.teacher import Teacher

        teacher = None
        if self.teacher is not None:
            teacher = Teacher(load_bundle(Path(self.teacher)), preprocess, shard=self.shard)
        if not self.answers:
            return FeatureDistillation(model, preprocess, teacher, self.tokens, self.loss)
        assert teacher is not None
        temperature = self.temperature if self.signal == "soft" else None
        return LogitDistillation(model, preprocess, classes, self.label_smoothing, teacher, self.share, temperature)
