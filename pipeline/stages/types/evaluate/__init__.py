"""The type `evaluate`: measures finished models on a whole data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.paths import PathText
from pipeline.config.section import Positive
from pipeline.config.stage import StageConfig
from pipeline.config.task import DEFAULT, AnyTask, TaskConfig, task_class
from pipeline.stages.data import check_background, check_classes, check_task, evaluated_classes
from pipeline.stages.evaluation_task import evaluated_data, evaluated_task
from pipeline.stages.findings import Checks
from pipeline.stages.inputs import VERSION, settings, source_inputs, without_none
from pipeline.stages.resolve import Branch, named_models
from pipeline.stages.stage_type import Known, StageType
from pipeline.stream.source import Source
from pipeline.tasks.task import Trained

if TYPE_CHECKING:
    from pipeline.stages.context import RunContext
    from pipeline.stages.types.evaluate.run import EvaluateStageRun


class EvaluateStage(StageConfig):
    """Every model in `models` on the whole data set, each sample exactly once."""

    resolved: ClassVar[Mapping[str, str]] = {
        "models": "the digests of those models",
        "data": "the data set's own inputs",
        "task": "the models' own where it is left out",
    }
    without_effect: ClassVar[Mapping[str, str]] = {
        "batch_size": "each sample is counted once",
        "loader_workers": "the same samples, read by others",
        "resources": "the same samples on other workers",
    }

    type: Literal["evaluate"]
    models: list[PathText] = Field(min_length=1, description="stages, STAGE/VARIANT, paths to exports or timm:NAME")
    data: str = Field(description="name of an entry of `datasets`")
    task: AnyTask | None = Field(
        default=None, description="the task to evaluate the models as; default: their own task, measured as in training"
    )
    batch_size: Positive = 256
    precision: Literal["bf16", "fp32"] = Field(default="fp32", description="precision of weights and activations")
    loader_workers: Annotated[int, Field(ge=0)] = Field(default=1, description="processes per rank that decode images")

    @property
    def models_read(self) -> dict[str, str]:
        return {f"models[{number}]": model for number, model in enumerate(self.models)}

    @property
    def data_read(self) -> dict[str, str]:
        return {"data": self.data}

    def details(self, models: int) -> list[str]:
        return [f"{models} models on {self.data}"]


class Evaluation(StageType):
    section = EvaluateStage

    def check(self, checks: Checks, branch: Branch) -> None:
        stage, where = branch.stage, f"stages.{branch.id}"
        assert isinstance(stage, EvaluateStage)
        models = [
            (name, model)
            for setting, reference in stage.models_read.items()
            for name, _, model in checks.models(branch, reference, setting)
        ]
        classes: list[str] | None = None
        with checks.noting():
            if models:
                trained: dict[str, Trained] = dict(models)
                task = evaluated_task(stage.task, trained, where)
                checks.need(stage.data, task.targets)
                found = known_classes(checks, stage.data, task.targets)
                classes = None if task.names_classes else found
                if found:
                    check_task(task, found, where)
        for name, model in models:
            with checks.noting():
                check_background(stage.data, checks.config.datasets[stage.data], name, model.background)
            if classes and model.head_known:
                with checks.noting():
                    check_classes(where, stage.data, classes, name, model.spec.num_classes, model.classes)
        for known in (known for reference in stage.models for known in checks.upstream(reference)):
            checks.overlaps.add(branch.id, checks.trained_on[known], stage.data)

    def expected_inputs(self, known: Known, branch: Branch, recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
        stage = branch.stage
        assert isinstance(stage, EvaluateStage)
        if stage.data not in known.datasets:
            return []
        names = named_models(known.config, stage.models)
        digests = {name: recorded.get("models", {}).get(name, "new") for name in names}
        trained = [model.spec.task for name in names for model in known.models.get(name, {}).values()]
        recorded_type = recorded.get("task", {}).get("type", DEFAULT)  # for foreign weights
        task = stage.task or task_class(next(iter(trained), recorded_type))()
        source, classes = evaluated_data(stage.data, known.datasets[stage.data], task)
        return [evaluate_inputs(stage, task=task, models=digests, data=source, classes=classes)]

    def start(self, context: RunContext, branch: Branch) -> EvaluateStageRun:
        from pipeline.stages.types.evaluate.run import EvaluateStageRun

        return EvaluateStageRun(context, branch)


TYPE = Evaluation()


def known_classes(checks: Checks, name: str, kinds: Sequence[str]) -> list[str] | None:
    """The classes that models are evaluated on; None while unknown."""
    dataset = checks.datasets.get(name)
    if dataset or not kinds:
        return evaluated_classes(name, dataset, kinds) if dataset else []
    return checks.class_names(name, kinds[0])


def evaluate_inputs(
    stage: EvaluateStage, *, task: TaskConfig, models: Mapping[str, str], data: Source, classes: Sequence[str]
) -> dict[str, Any]:
    """Everything that determines what an evaluation measures; `models` maps names to model digests."""
    inputs = {
        "version": VERSION,
        "settings": settings(stage),
        "models": dict(models),
        "data": source_inputs(data),
        "classes": list(classes),
        "task": settings(task) or None,
    }
    return without_none(inputs)
