"""The type `weigh`: counts the weights of a finished model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pipeline.config.paths import PathText
from pipeline.config.stage import StageConfig
from pipeline.stages.context import RunContext
from pipeline.stages.findings import Checks
from pipeline.stages.folder import Status
from pipeline.stages.inputs import VERSION, settings
from pipeline.stages.resolve import Branch
from pipeline.stages.stage_run import StageRun
from pipeline.stages.stage_type import Known, StageType


class WeighStage(StageConfig):
    on_workers: ClassVar[bool] = False
    resolved: ClassVar[Mapping[str, str]] = {"model": "the digest of that model"}
    without_effect: ClassVar[Mapping[str, str]] = {"resources": "it has no workers"}

    type: Literal["weigh"]
    model: PathText

    @property
    def models_read(self) -> dict[str, str]:
        return {"model": self.model}


class WeighStageRun(StageRun):
    def __init__(self, context: RunContext, branch: Branch) -> None:
        from pipeline.stages.sources import resolve_source

        super().__init__(context, branch)
        assert isinstance(branch.stage, WeighStage)
        self.stage, self.source = branch.stage, resolve_source(context, self.id, branch.stage.model)

    def inputs(self) -> dict[str, Any]:
        return weigh_inputs(self.stage, self.source.digest)

    def run(self, status: Status) -> dict[str, Any]:
        from pipeline.models.bundle import load_bundle

        weights = sum(tensor.numel() for tensor in load_bundle(self.source.path).state.values())
        self.context.say(self.id, f"{self.source.name} has {weights:,} weights")
        return {"weights": weights}

    def metrics(self, result: dict[str, Any]) -> dict[str, float]:
        return {"weights": float(result["weights"])}


class Weighing(StageType):
    section = WeighStage

    def check(self, checks: Checks, branch: Branch) -> None:
        assert isinstance(branch.stage, WeighStage)
        checks.models(branch, branch.stage.model, "model")

    def expected_inputs(self, known: Known, branch: Branch, recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
        assert isinstance(branch.stage, WeighStage)
        return [weigh_inputs(branch.stage, recorded.get("model", "new"))]

    def start(self, context: RunContext, branch: Branch) -> WeighStageRun:
        return WeighStageRun(context, branch)


TYPE = Weighing()


def weigh_inputs(stage: WeighStage, model: str) -> dict[str, Any]:
    """Everything that determines the count; `model` is the model's digest."""
    return {"version": VERSION, "settings": settings(stage), "model": model}
