"""LeJEPA (Balestriero & LeCun 2025): views of an image predict each other's embeddings, regularised to be Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.section import Positive
from pipeline.metrics.effective_rank import EFFECTIVE_RANK
from pipeline.metrics.schema import LOSS, Measure, Schema
from pipeline.tasks._joint import JointTask

if TYPE_CHECKING:
    from pipeline.models.bundle import Preprocess
    from pipeline.models.minivit import MiniViT
    from pipeline.tasks.base import TaskModule


class Task(JointTask):
    """No teacher, no stop-gradient and a single coefficient; evaluation measures the effective rank of the features."""

    type: Literal["lejepa"] = "lejepa"
    regulariser: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05,
        description="weight of SIGReg, lambda in the paper; the weight of the prediction loss is 1 minus this",
    )
    slices: Positive = Field(
        default=256, description="number of random directions onto which each step projects the embeddings"
    )

    measured: ClassVar[Schema] = Schema(
        (LOSS, Measure("prediction", "Prediction", "lower"), Measure("sigreg", "SIGReg", "lower"), EFFECTIVE_RANK),
        EFFECTIVE_RANK.name,
    )

    def module(self, model: MiniViT, classes: Sequence[str], preprocess: Preprocess) -> TaskModule:
        from pipeline.tasks.lejepa.module import LeJEPA

        return LeJEPA(model, preprocess, self.regulariser, self.slices)
