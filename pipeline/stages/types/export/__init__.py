"""The type `export`: writes a finished model in the formats that downstream code reads."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.export import BEST, EMA, SOUP, STEP, GraphConfig, RegisterConfig, Weights
from pipeline.config.paths import PathText
from pipeline.config.references import source_stage
from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.config.train_stage import TrainStage
from pipeline.errors import ConfigError, ModelError
from pipeline.export import check_format, check_model
from pipeline.metrics.schema import VAL
from pipeline.stages.data import epoch_samples
from pipeline.stages.findings import Checks
from pipeline.stages.inputs import VERSION, settings
from pipeline.stages.resolve import Branch
from pipeline.stages.stage_type import Known, StageType
from pipeline.stages.types.evaluate import EvaluateStage

if TYPE_CHECKING:
    from pipeline.stages.context import RunContext
    from pipeline.stages.types.export.run import ExportStageRun


class ExportStage(StageConfig):
    on_workers: ClassVar[bool] = False
    resolved: ClassVar[Mapping[str, str]] = {"model": "the digest of that model"}
    without_effect: ClassVar[Mapping[str, str]] = {"resources": "an export has no workers"}

    type: Literal["export"]
    model: PathText
    formats: list[str] = Field(default_factory=lambda: ["safetensors"])
    weights: Weights | None = Field(
        default=None,
        description="last, ema, best, step-N or soup-K (the mean of the last K) of the stage's checkpoints; default: "
        "the finished model",
    )
    graph: GraphConfig = GraphConfig()
    register_as: RegisterConfig | None = Field(
        default=None, description="default: not registered in MLflow; only finished models can be"
    )
    license: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="the weights' licence in the Hub's notation, such as apache-2.0, for the model card",
    )

    @property
    def models_read(self) -> dict[str, str]:
        return {"model": self.model}

    def details(self, models: int) -> list[str]:
        return [f"{self.model} as", ", ".join(self.formats)]

    def awaits(self, stages: Mapping[str, StageConfig]) -> list[str]:
        """The evaluations of its model: their findings go on its card."""
        return [
            name for name, other in stages.items() if isinstance(other, EvaluateStage) and self.model in other.models
        ]


class Exporting(StageType):
    section = ExportStage

    def check(self, checks: Checks, branch: Branch) -> None:
        stage = branch.stage
        assert isinstance(stage, ExportStage)
        models = checks.models(branch, stage.model, "model")
        if stage.weights is not None:
            with checks.noting():
                check_kept(checks, branch, stage.model, stage.weights)
        if stage.register_as is not None:
            with checks.noting():
                check_registered(checks.config, branch, stage)
        for number, name in enumerate(stage.formats):
            where = f"stages.{branch.id}.formats[{number}]"
            try:
                check_format(name, stage.graph)
            except (ConfigError, ModelError) as error:
                checks.findings.faults.append(ConfigError(f"{where}: {str(error).removeprefix('format: ')}"))
                continue
            for source, _, model in models:
                try:
                    check_model(name, model.spec, model.evaluation)
                except ModelError as error:
                    checks.findings.faults.append(ConfigError(f"{where}: {name} cannot hold {source}: {error}"))

    def expected_inputs(self, known: Known, branch: Branch, recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
        assert isinstance(branch.stage, ExportStage)
        return [export_inputs(branch.stage, model=recorded.get("model", "new"))]

    def start(self, context: RunContext, branch: Branch) -> ExportStageRun:
        from pipeline.stages.types.export.run import ExportStageRun

        return ExportStageRun(context, branch)


TYPE = Exporting()


def export_inputs(stage: ExportStage, *, model: str) -> dict[str, Any]:
    """Everything that determines what an export writes; `model` is the model's digest."""
    return {"version": VERSION, "settings": settings(stage), "model": model}


def check_kept(checks: Checks, branch: Branch, reference: str, weights: str) -> None:
    """Raise ConfigError for weights that the exported stage's checkpoints will not hold."""
    where, source = f"stages.{branch.id}.weights", source_stage(checks.config, reference)
    stage = checks.config.stages[source] if source else None
    if not isinstance(stage, TrainStage):
        raise ConfigError(
            f"{where}: {weights} needs a training stage's checkpoints, but {reference} is not a stage of this pipeline"
        )
    if weights == EMA and stage.ema is None:
        raise ConfigError(
            f"{where}: found ema, but stages.{source} has no moving average; set stages.{source}.ema: 0.999"
        )
    if weights == BEST and stage.checkpoint.keep_best is None:
        best = VAL + stage.measured.selects
        raise ConfigError(
            f"{where}: found best, but no measure to choose it by; set stages.{source}.checkpoint.keep_best: {best}"
        )
    soup = SOUP.fullmatch(weights)
    if soup and stage.checkpoint.keep_last < int(soup[1]) and stage.checkpoint.keep_every is None:
        raise ConfigError(
            f"{where}: {weights} needs {soup[1]} checkpoints, but stages.{source}.checkpoint.keep_last is "
            f"{stage.checkpoint.keep_last}; set it to {soup[1]}"
        )
    indexes = {name: dataset.index for name, dataset in checks.datasets.items()}
    samples = epoch_samples(checks.config, stage, indexes)
    if samples is None:
        return
    steps = max(stage.duration.steps(samples, stage.global_batch_size), 1)
    if (step := STEP.fullmatch(weights)) and int(step[1]) > steps:
        raise ConfigError(f"{where}: found {weights}, but stages.{source} ends with step {steps}; name an earlier one")
    saved = ceil(steps / stage.checkpoint.every.steps(samples, stage.global_batch_size))
    if soup and saved < int(soup[1]):
        raise ConfigError(
            f"{where}: {weights} needs {soup[1]} checkpoints, but stages.{source} saves {saved} in its {steps} steps; "
            f"set stages.{source}.checkpoint.every to fewer steps"
        )


def check_registered(config: PipelineConfig, branch: Branch, stage: ExportStage) -> None:
    """Raise ConfigError for a model that no stage of the pipeline logs in MLflow."""
    where, source = f"stages.{branch.id}.register_as", source_stage(config, stage.model)
    if source is None:
        raise ConfigError(
            f"{where}: only a training stage's model can be registered, and {stage.model} is not a stage of this "
            "pipeline"
        )
    if stage.weights is not None:
        raise ConfigError(f"{where}: only the finished model can be registered; leave stages.{branch.id}.weights out")
