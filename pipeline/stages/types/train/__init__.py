"""The types `pretrain` and `finetune`: train one model per variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.train_stage import TrainStage
from pipeline.files import hash_file
from pipeline.models.model_spec import ModelSpec
from pipeline.stages.data import stage_data, used_datasets
from pipeline.stages.findings import Checks
from pipeline.stages.inputs import VERSION, model_inputs, settings, source_inputs, without_none
from pipeline.stages.resolve import Branch
from pipeline.stages.stage_type import Known, StageType
from pipeline.stages.types.train.check import TrainingCheck
from pipeline.stream.quarantine import manifest_digest
from pipeline.stream.source import Source, evaluation_of

if TYPE_CHECKING:
    from pipeline.stages.context import RunContext
    from pipeline.stages.types.train.run import TrainStageRun


class Training(StageType):
    section = TrainStage

    def check(self, checks: Checks, branch: Branch) -> None:
        assert isinstance(branch.stage, TrainStage)
        TrainingCheck(checks, branch, branch.stage).run()

    def expected_inputs(self, known: Known, branch: Branch, recorded: Mapping[str, Any]) -> list[dict[str, Any]]:
        stage = branch.stage
        assert isinstance(stage, TrainStage)
        if not known.datasets.keys() >= set(used_datasets(stage.data)):
            return []
        train, val, classes = stage_data(known.datasets, stage.data, stage.task, f"stages.{branch.stage_name}")
        given: dict[str, Any] = {"classes": classes, "seed": known.config.seed, "train": train, "val": val}
        given |= {name: recorded.get(name) for name in ("init_from", "teacher")}
        return [train_inputs(stage, spec=model.spec, **given) for model in known.models[branch.id].values()]

    def start(self, context: RunContext, branch: Branch) -> TrainStageRun:
        from pipeline.stages.types.train.run import TrainStageRun

        return TrainStageRun(context, branch)


TYPE = Training()


def train_inputs(
    stage: TrainStage,
    *,
    spec: ModelSpec,
    classes: Sequence[str],
    seed: int,
    train: Sequence[Source],
    val: Source | None,
    init_from: str | None,
    teacher: str | None = None,
) -> dict[str, Any]:
    """Everything that determines what a training stage computes.

    `init_from` and `teacher` are the digests of the models that it starts from and learns from. Raises `DataError`
    if `data.exclude` is not a manifest.
    """
    given = settings(stage)
    if task := {name: value for name, value in given.pop("task", {}).items() if name not in stage.task.measuring}:
        given["task"] = task
    inputs = {
        "version": VERSION,
        "settings": given,
        "spec": model_inputs(spec),
        "preprocess": {name: list(getattr(train[0].config, name)) for name in ("mean", "std", "background")}
        | ({"eval": how} if (how := settings(evaluation_of(train, val))) else {}),
        "classes": list(classes),
        "seed": seed,
        "train": {source.name: source_inputs(source) for source in train},
        "order": [source.name for source in train],
        "val": source_inputs(val) if val else None,
        "exclude": manifest_digest(stage.data.exclude) if stage.data.exclude else None,
        "init_from": init_from,
        "teacher": teacher,
        "tokenizer": hash_file(Path(texts.file)) if (texts := stage.task.tokenizing()) and texts.file else None,
    }
    return without_none(inputs)
