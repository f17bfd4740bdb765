from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.stages.context import RunContext, open_datasets
from pipeline.stages.evaluation_task import describe_measures
from pipeline.stages.resolve import stage_branches
from pipeline.stages.sources import SourceModel
from pipeline.stages.types.probe.run import ProbeStageRun
from pipeline.train.probe import part_of

MEASURED = {"knn": 0.8, "intervals": {"knn": [0.75, 0.84]}, "chosen": {"k": 5}, "samples": 20}


@pytest.fixture
def stage(context: RunContext, make_shards: Any, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> ProbeStageRun:
    """Of two branches and the baselines, all training finished."""
    make_shards("train", 96, 48, [f"class {label}" for label in range(10)])
    make_shards("test", 20, 20, [f"class {label}" for label in range(10)])
    for settings in raw["datasets"].values():
        del settings["make"]
    data = {"train": "train", "test": "test"}
    raw["stages"]["probe"] = {"type": "probe", "models": ["random", "pretrain", "pixels"], "data": data}
    context.config = parse_config(raw, "c")
    context.datasets = open_datasets(context.config)

    def resolved(context: RunContext, stage_id: str, name: str) -> SourceModel:
        return SourceModel(name, context.folder.stage(name).model, f"digest of {name}")

    monkeypatch.setattr("pipeline.stages.types.probe.run.resolve_source", resolved)
    return ProbeStageRun(context, next(b for b in stage_branches(context.config) if b.id == "probe"))


def test_baselines_stand_beside_the_first_model(stage: ProbeStageRun) -> None:
    models = stage.models()
    assert list(models) == ["random", "pretrain/nano", "pretrain/micro", "pixels"]
    assert models["random"].path == models["pixels"].path == models["pretrain/nano"].path
    assert [model.baseline for model in models.values()] == ["random", None, None, "pixels"]
    digests = stage.inputs()["models"]
    assert digests == {
        "pretrain/nano": "digest of pretrain/nano",
        "pretrain/micro": "digest of pretrain/micro",
        "random": "digest of pretrain/nano",
        "pixels": "digest of pretrain/nano",
    }


def test_it_waits_for_its_models(stage: ProbeStageRun) -> None:
    from pipeline.stages.resolve import dependencies

    assert dependencies(stage.context.config, "probe") == ["pretrain/nano", "pretrain/micro"]


def test_what_an_earlier_start_has_measured_is_kept(stage: ProbeStageRun) -> None:
    job = stage._job()
    assert job.done == {}
    file = part_of(job, "pretrain/micro")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(MEASURED))
    assert stage._job().done == {"pretrain/micro": MEASURED}


def test_metrics_of_each_model(stage: ProbeStageRun) -> None:
    result = {
        "measures": {"pretrain/nano": {"knn": 0.8, "linear": 0.9}},
        "bad_samples": {"train": {"bad": 2}, "test": {"bad": 0}},
    }
    assert stage.metrics(result) == {
        "test/knn/pretrain/nano": 0.8,
        "test/linear/pretrain/nano": 0.9,
        "train/bad_samples": 2.0,
        "test/bad_samples": 0.0,
    }


def test_measures_in_words() -> None:
    from pipeline.config.probe import KnnConfig, MethodsConfig
    from pipeline.probe.measure import schema_of_methods

    assert describe_measures(schema_of_methods(MethodsConfig(knn=KnnConfig())), MEASURED) == [
        "kNN accuracy 80.00 % (75.00 % to 84.00 %)"
    ]
