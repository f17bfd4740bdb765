"""The type `probe`: measures the frozen features of finished models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.cluster import ResourcesConfig
from pipeline.config.paths import PathText
from pipeline.config.probe import BASELINES, KnnConfig, LinearConfig, MethodsConfig, Pooling, ProbeData
from pipeline.config.section import Positive
from pipeline.config.stage import StageConfig
from pipeline.stages.findings import Checks
from pipeline.stages.inputs import VERSION, settings, source_inputs
from pipeline.stages.probe_data import check_features, check_numbers, probe_sources
from pipeline.stages.resolve import Branch, named_models
from pipeline.stages.stage_type import Known, StageType
from pipeline.stream.source import Source

if TYPE_CHECKING:
    from pipeline.stages.context import RunContext
    from pipeline.stages.types.probe.run import ProbeStageRun


class ProbeStage(StageConfig):
    """The quality of the frozen features of every model in `models`, on labelled data."""

    resolved: ClassVar[Mapping[str, str]] = {
        "models": "the digests of those models",
        "data": "the data sets' own inputs",
    }
    without_effect: ClassVar[Mapping[str, str]] = {
        "batch_size": "features of a sample depend on it alone",
        "loader_workers": "the same samples, read by others",
        "resources": "the same samples on other workers",
    }

    type: Literal["probe"]
    models: list[PathText] = Field(
        min_length=1,
        description="stages, STAGE/VARIANT, paths to exports or timm:NAME; and random (the first model's shape with "
        "initial weights) and pixels",
    )
    data: ProbeData
    methods: MethodsConfig = MethodsConfig(knn=KnnConfig(), linear=LinearConfig())
    features: Pooling = Field(
        default="both", description="the class token, the mean of the patches, or both side by side"
    )
    batch_size: Positive = 256
    precision: Literal["bf16", "fp32"] = Field(default="fp32", description="precision of weights and activations")
    loader_workers: Annotated[int, Field(ge=0)] = Field(default=1, description="processes per rank that decode images")

    @model_validator(mode="after")
    def has_a_model(self) -> Self:
        if set(self.models) <= set(BASELINES):
            raise ValueError("models: random and pixels take their shape and images from a model; name one too")
        return self

    @property
    def models_read(self) -> dict[str, str]:
        return {f"models[{number}]": model for number, model in enumerate(self.models) if model not in BASELINES}

    @property
    def data_read(self) -> dict[str, str]:
        return {"data.train": self.data.train, "data.test": self.data.test}

    def details(self, models: int) -> list[str]:
        return [f"{len(self.models)} models on {self.data.test}", f"after {self.data.train}"]

    def faults(self, name: str, stages: Mapping[str, StageConfig], cluster: ResourcesConfig) -> Iterator[str]:
        """A baseline that could also mean a stage."""
        if taken := stages.keys() & set(BASELINES) & set(self.models):
            yield (
                f"stages.{min(taken)}: found the name of a baseline in stages.{name}.models; give the stage another "
                "name."
            )


class Probing(StageType):
    section = ProbeStage

    def check(self, checks: Checks, branch: Branch) -> None:
        stage, where = branch.stage, f"stages.{branch.id}"
        assert isinstance(stage, ProbeStage)
        for setting, reference in stage.models_read.items():
            for name, _, model in checks.models(branch, reference, setting):
                with checks.noting():
                    check_features(where, stage.features, name, model.spec)
            fitted = {stage.data.train} if stage.methods.fit else set()
            for known in checks.upstream(reference):
                checks.overlaps.add(branch.id, checks.trained_on[known] | fitted, stage.data.test)
        names = stage.data.train, stage.data.test
        checks.labelled_pair(names, f"{where}.data")
        if checks.datasets.keys() >= set(names):
            train, test = (checks.datasets[name].index.num_samples for name in names)
            with checks.noting():
                check_numbers(stage.methods, train, test, f"{where}.methods")

    def expected_inputs(self, known: Known, branch: Branch, recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
        stage = branch.stage
        assert isinstance(stage, ProbeStage)
        pair = stage.data.train, stage.data.test
        if not known.datasets.keys() >= set(pair):
            return []
        names = named_models(known.config, stage.models)
        digests = {name: recorded.get("models", {}).get(name, "new") for name in names}
        found = probe_sources(pair, (known.datasets[pair[0]], known.datasets[pair[1]]), f"stages.{branch.id}.data")
        return [probe_inputs(stage, models=digests, **found._asdict(), seed=known.config.seed)]

    def start(self, context: RunContext, branch: Branch) -> ProbeStageRun:
        from pipeline.stages.types.probe.run import ProbeStageRun

        return ProbeStageRun(context, branch)


TYPE = Probing()


def probe_inputs(
    stage: ProbeStage, *, models: Mapping[str, str], train: Source, test: Source, classes: Sequence[str], seed: int
) -> dict[str, Any]:
    """Everything that determines what a probe measures; `models` maps names to digests, baselines to their model's."""
    return {
        "version": VERSION,
        "settings": settings(stage),
        "models": dict(models),
        "data": {"train": source_inputs(train), "test": source_inputs(test)},
        "classes": list(classes),
        "seed": seed,
    }
