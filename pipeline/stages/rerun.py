"""Which started stages would run again, worked out without reading weights: the part a plan can decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.references import TEACHER, stage_sources
from pipeline.config.schema import EvaluateStage, ExportStage, PipelineConfig, ProbeStage, TrainStage
from pipeline.config.task import DEFAULT, task_class
from pipeline.stages.data import stage_data, used_datasets
from pipeline.stages.evaluation_task import evaluated_data
from pipeline.stages.folder import FINISHED, Status
from pipeline.stages.inputs import (
    changes,
    differences,
    evaluate_inputs,
    export_inputs,
    probe_inputs,
    train_inputs,
)
from pipeline.stages.preflight import Model
from pipeline.stages.probe_data import probe_sources
from pipeline.stages.resolve import Branch, dependencies, reference_ids, stage_branches
from pipeline.train.job import Dataset


def rerun_reasons(
    config: PipelineConfig,
    datasets: Mapping[str, Dataset],
    models: Mapping[str, Mapping[str, Model]],
    statuses: Mapping[str, Status],
) -> dict[str, str]:
    """Branch id -> the end of `runs again, because`, for branches whose inputs no longer match their status.

    `models` comes from `preflight`. A branch runs again if a branch it depends on does. Changes to data that has not
    been made yet, and to foreign weights, go unnoticed.
    """
    reasons: dict[str, str] = {}
    for branch in stage_branches(config):
        status = statuses.get(branch.id)
        if status is None:
            continue
        for needed in dependencies(config, branch.id):
            if needed in reasons or needed not in statuses or statuses[needed].state != FINISHED:
                reasons[branch.id] = f"{needed} is not finished" if needed not in reasons else f"{needed} runs again"
                break
        else:
            expected = _expected(config, datasets, models, branch, status.inputs)
            if _starts_elsewhere(config, branch, status):
                reasons[branch.id] = f"it started from {status.init_from}"
            elif expected and status.inputs not in expected:
                nearest = min(expected, key=lambda inputs: len(differences(status.inputs, inputs)))
                reasons[branch.id] = changes(status.inputs, nearest)
    return reasons


def _expected(
    config: PipelineConfig,
    datasets: Mapping[str, Dataset],
    models: Mapping[str, Mapping[str, Model]],
    branch: Branch,
    recorded: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The inputs a branch may have, with model digests as recorded; empty if its data is missing."""
    match branch.stage:
        case TrainStage() as stage if datasets.keys() >= set(used_datasets(stage.data)):
            train, val, classes = stage_data(datasets, stage.data, stage.task, f"stages.{branch.stage_name}")
            given: dict[str, Any] = {"classes": classes, "seed": config.seed, "train": train, "val": val}
            given |= {name: recorded.get(name) for name in ("init_from", "teacher")}
            return [train_inputs(stage, spec=model.spec, **given) for model in models[branch.id].values()]
        case EvaluateStage() as stage if stage.data in datasets:
            names = [name for reference in stage.models for name in reference_ids(config, reference) or [reference]]
            data = datasets[stage.data]
            digests = {name: recorded.get("models", {}).get(name, "new") for name in names}
            known = [model.spec.task for name in names for model in models.get(name, {}).values()]
            recorded_type = recorded.get("task", {}).get("type", DEFAULT)  # for foreign weights
            task = stage.task or task_class(next(iter(known), recorded_type))()
            source, classes = evaluated_data(stage.data, data, task)
            return [evaluate_inputs(stage, task=task, models=digests, data=source, classes=classes)]
        case ProbeStage() as stage if datasets.keys() >= {stage.data.train, stage.data.test}:
            names = [name for reference in stage.models for name in reference_ids(config, reference) or [reference]]
            digests = {name: recorded.get("models", {}).get(name, "new") for name in names}
            pair = stage.data.train, stage.data.test
            found = probe_sources(pair, (datasets[pair[0]], datasets[pair[1]]), f"stages.{branch.id}.data")
            return [probe_inputs(stage, models=digests, **found._asdict(), seed=config.seed)]
        case ExportStage() as stage:
            return [export_inputs(stage, model=recorded.get("model", "new"))]
    return []


def _starts_elsewhere(config: PipelineConfig, branch: Branch, status: Status) -> bool:
    """Whether a branch started from a model that its reference no longer stands for."""
    if status.init_from is None or isinstance(branch.stage, (EvaluateStage, ProbeStage)):
        return False
    sources = stage_sources(branch.stage_name, branch.stage)
    references = [reference for path, reference in sources if not path.endswith(TEACHER)]
    names = {name for reference in references for name in reference_ids(config, reference) or [reference]}
    return status.init_from not in names
