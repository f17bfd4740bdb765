"""Object detection: a box and a class for every object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Positive, Share
from pipeline.config.views import ViewGroup
from pipeline.metrics.average_precision import DETECTION, MOST
from pipeline.metrics.schema import Schema
from pipeline.models.heads import head_kind, head_kinds
from pipeline.models.heads._boxes import BoxKind
from pipeline.models.spec import HeadSpec, ViTSpec
from pipeline.tasks._inference_size import InferenceSize
from pipeline.tasks.task import BaseTask, PredictOptions

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.detection.module import Detection

HEAD = "box_head"
LOOKED_AT = 1000  # maximum number of candidates per image for non-maximum suppression


class DetectionInference(InferenceSize):
    """Input size and box selection in validation, evaluation and prediction."""

    score: Share = Field(default=0.02, description="minimum score of boxes that the measures count")
    shown: Share = Field(default=0.3, description="minimum score of boxes in predictions and pictures")
    overlap: Share = Field(
        default=0.6,
        description="IoU above which only the better of two boxes of a class is kept; only for pyramid",
    )
    most: Annotated[int, Field(gt=0, le=MOST)] = Field(default=MOST, description="maximum number of boxes per image")


class Task(BaseTask):
    """Boxes are trained with L1 and GIoU, classes with cross-entropy or focal loss; COCO mAP selects models."""

    targets: ClassVar[tuple[str, ...]] = ("boxes",)
    measuring: ClassVar[frozenset[str]] = frozenset({"inference"})
    measured: ClassVar[Schema] = DETECTION
    pipeline_tag: ClassVar[str] = "object-detection"
    predict_options: ClassVar[PredictOptions] = {"score": float}

    type: Literal["detection"] = "detection"
    head: str = Field(
        default="pyramid",
        description="pyramid (feature maps at several strides, many candidates per object) or queries (DETR, one each)",
    )
    layers: Annotated[list[int], Field(min_length=1)] | None = Field(
        default=None, description="layers, from 0, whose maps the head reads; default: the last one"
    )
    head_options: dict[str, Positive] = Field(
        default_factory=dict,
        description="further settings of the head: finest and coarsest (strides in pixels), hidden and depth for "
        "pyramid; queries and depth for queries",
    )
    denoising: Annotated[int, Field(ge=0, le=16)] | None = Field(
        default=None,
        description="for queries: number of noisy copies of each box to train on as well (DN-DETR); default: 3",
    )
    inference: DetectionInference = DetectionInference()

    @field_validator("head")
    @classmethod
    def finds_boxes(cls, name: str) -> str:
        kinds = [kind for kind in head_kinds() if isinstance(head_kind(kind), BoxKind)]
        if name not in kinds:
            raise ValueError(f"a head that finds boxes, one of {', '.join(kinds)}")
        return name

    @model_validator(mode="after")
    def denoises_queries(self) -> Task:
        if self.denoising and not self.one_to_one:
            raise ValueError(f"denoising: found {self.denoising}, but a {self.head} head has no queries; leave it out")
        return self

    @property
    def kind(self) -> BoxKind:
        kind = head_kind(self.head)
        assert isinstance(kind, BoxKind)
        return kind

    @property
    def one_to_one(self) -> bool:
        """Whether each object is assigned to exactly one candidate in training."""
        return self.kind.matching == "one"

    @property
    def copies(self) -> int:
        """Copies of each box for denoising."""
        if not self.one_to_one:
            return 0
        return 3 if self.denoising is None else self.denoising

    def view_groups(self, *, evaluation: bool = False) -> dict[str, ViewGroup]:
        return self.inference.view_groups(evaluation=evaluation)

    def check(self, backbone: ViTSpec) -> None:
        self.inference.check(backbone)

    def heads(self, backbone: ViTSpec, num_classes: int) -> dict[str, HeadSpec]:
        options: dict[str, Any] = {} if self.layers is None else {"layers": self.layers}
        options |= self.head_options | ({"denoising": 1} if self.copies else {})
        return {HEAD: HeadSpec(self.head, num_classes, options)}

    def example_prediction(self, num_classes: int) -> dict[str, list[Any]]:
        return {"boxes": [[0.0, 0.0, 1.0, 1.0]], "scores": [0.5], "labels": ["name"], "classes": [0]}

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> Detection:
        from pipeline.tasks.detection.module import Detection

        return Detection(model, self, classes, preprocess)
