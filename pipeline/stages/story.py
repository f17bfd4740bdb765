"""A model's history, read from a run's folder: the stages behind it, their data, and its measures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.export.story import DataUse, Figure, Step, Story
from pipeline.metrics.outcome import measures_of, schema_of
from pipeline.probe.interval import accuracy_intervals
from pipeline.stages.folder import FINISHED, RunFolder, Status
from pipeline.train.evaluate import NAME as EVALUATION

SURGERY = "surgery.txt"


def model_story(run: RunFolder, stage_id: str, license_name: str | None = None, *, finished: bool = True) -> Story:
    """The story of a training stage's model, as far as the run's folder records it.

    Weights of checkpoints have no figures: the run only measured the finished model.
    """
    statuses = list(_ancestors(run, stage_id))
    return Story(
        name=run.path.absolute().name,
        steps=tuple(_step(run, found, status) for found, status in statuses),
        data=tuple(use for found, status in statuses for use in _data(found, status)),
        figures=(*_validation(run, stage_id), *_evaluations(run, stage_id)) if finished else (),
        license=license_name,
    )


def story_of(model: Path, license_name: str | None = None, *, finished: bool = True) -> Story:
    """`model_story` for a stage's folder or its `model`; for any other folder only the licence is known."""
    for folder in (model, *model.absolute().parents):
        stages = next((parent for parent in folder.absolute().parents if parent.name == "stages"), None)
        if stages and (folder / "status.json").is_file():
            stage_id = folder.absolute().relative_to(stages).as_posix()
            return model_story(RunFolder(stages.parent), stage_id, license_name, finished=finished)
    return Story(license=license_name)


def _ancestors(run: RunFolder, stage_id: str) -> Iterator[tuple[str, Status]]:
    """The training stages behind a model, oldest first."""
    status = run.stage(stage_id).status()
    if status is None:
        return
    if status.init_from in run.stage_ids() and status.init_from != stage_id:
        yield from _ancestors(run, status.init_from)
    yield stage_id, status


def _step(run: RunFolder, stage_id: str, status: Status) -> Step:
    surgery = run.stage(stage_id).path / SURGERY
    summary = surgery.read_text(encoding="utf-8").splitlines()[0] if surgery.is_file() else None
    settings = {**status.inputs.get("settings", {}), "seed": status.inputs.get("seed")}
    samples = status.result.get("samples")
    return Step(stage_id, status.type, status.init_from, status.teacher, samples, summary, settings)


def _data(stage_id: str, status: Status) -> list[DataUse]:
    used = [("train", name, found) for name, found in status.inputs.get("train", {}).items()]
    if val := status.inputs.get("val"):
        used.append(("val", status.inputs["settings"]["data"].get("val", "val"), val))
    return [DataUse(stage_id, role, name, found["digest"]) for role, name, found in used]


def _validation(run: RunFolder, stage_id: str) -> list[Figure]:
    """The measures of a stage's last validation."""
    status = run.stage(stage_id).status()
    val = status.inputs.get("val") if status else None
    if status is None or not val:
        return []
    name = status.inputs["settings"]["data"].get("val", "val")
    written = asdict(status)
    found, samples = measures_of(written), status.result.get("val_samples")
    return _figures(written, found, f"{name} (validation)", val["digest"], samples)


def _evaluations(run: RunFolder, stage_id: str) -> list[Figure]:
    """The measures of a model in the run's finished evaluation stages."""
    figures = []
    for other in run.stage_ids():
        folder = run.stage(other)
        status, file = folder.status(), folder.path / EVALUATION
        if status is None or status.state != FINISHED or not file.is_file():
            continue
        evaluation = json.loads(file.read_text(encoding="utf-8"))
        if found := evaluation.get("models", {}).get(stage_id):
            digest = status.inputs.get("data", {}).get("digest", "")
            data = f"{evaluation.get('name', 'evaluation')} ({other})"
            figures += _figures(evaluation, found, data, digest, found.get("samples"))
    return figures


def _figures(
    written: Mapping[str, Any], found: Mapping[str, Any], data: str, digest: str, samples: int | None
) -> list[Figure]:
    """The measures of a model, with Wilson intervals for fractions of independent samples, recorded ones for others."""
    figures, schema, bootstrap = [], schema_of(written), found.get("intervals", {})
    shares = accuracy_intervals(found, samples) if samples else {}
    for measure in schema.ranked:
        if (value := found.get(measure.name)) is not None:
            one = Figure(measure, float(value), data, digest, samples, None)
            if interval := shares.get(measure.name):
                one = one._replace(interval=interval, method="Wilson")
            elif ends := bootstrap.get(measure.name):
                one = one._replace(interval=(ends[0], ends[1]), method="bootstrap")
            figures.append(one)
    return figures
