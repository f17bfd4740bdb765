"""SimDINO and SimDINOv2 (Wu et al. 2025): a moving-average teacher, and a coding rate that prevents collapse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.section import Section
from pipeline.metrics.effective_rank import EFFECTIVE_RANK
from pipeline.metrics.schema import LOSS, Measure, Schema
from pipeline.models import model_costs
from pipeline.tasks._joint import JointTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.models.model_spec import ModelSpec
    from pipeline.models.spec import Pair
    from pipeline.tasks.base import TaskModule


class PatchLossConfig(Section):
    """Prediction of the teacher's embeddings for masked patches of the global views (iBOT, Zhou et al. 2022)."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description="share of patches that [MASK] tokens replace in the student's global views"
    )


class Task(JointTask):
    """Uses embeddings of unit length; evaluation measures the effective rank of the features."""

    type: Literal["simdino"] = "simdino"
    momentum: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.996, description="the teacher's initial momentum; it rises to 1 along a cosine"
    )
    coding_rate: Annotated[float, Field(gt=0)] = Field(default=1.0, description="weight of the coding rate")
    distortion: Annotated[float, Field(gt=0)] = Field(
        default=0.5, description="squared error up to which embeddings are coded, epsilon^2 in the paper"
    )
    patch_loss: PatchLossConfig | None = Field(default=None, description="SimDINOv2's loss; default: none")

    follows: ClassVar[bool] = True
    measured: ClassVar[Schema] = Schema(
        (
            LOSS,
            Measure("alignment", "Alignment", "lower"),
            Measure("patches", "Patch alignment", "lower"),
            Measure("coding_rate", "Coding rate", "higher"),
            EFFECTIVE_RANK,
        ),
        EFFECTIVE_RANK.name,
    )

    def backbone_fields(self) -> dict[str, Any]:
        return {"mask_token": True} if self.patch_loss else {}

    def head_options(self) -> dict[str, Any]:
        return super().head_options() | ({"patches": True} if self.patch_loss else {})

    def forward_flops(self, spec: ModelSpec, image_size: Pair, patch: Pair) -> int:
        """Operations for all views of one sample, including the teacher on the global views."""
        count, size = self.seen(image_size)[0]
        return super().forward_flops(spec, image_size, patch) + count * model_costs.forward_flops(spec, size, patch)

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        from pipeline.tasks.simdino.module import SimDINO

        return SimDINO(model, preprocess, self)
