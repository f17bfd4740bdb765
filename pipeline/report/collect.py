"""Reads a run folder into plain records. Any file may be missing, as the run may be unfinished."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from pipeline.config.schema import PipelineConfig
from pipeline.config.stage import StageConfig
from pipeline.config.train_stage import TrainStage
from pipeline.config.yaml_text import read_yaml
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.metrics.files import CONFUSION, PER_CLASS, PRECISION_RECALL
from pipeline.metrics.outcome import schema_of
from pipeline.models.model_spec import ModelSpec
from pipeline.report.files import read_arrays, read_json, read_lines, read_table
from pipeline.report.records import BranchRecord, Evaluation, ProbeRecord, Run


def read_run(folder: Path) -> Run:
    """Read `runs/<name>`. Raises CheckpointError if the folder holds no pipeline that this version can read."""
    source = folder / "pipeline.yaml"
    if not source.is_file():
        raise CheckpointError(
            f"{folder} is not a run folder, because it has no pipeline.yaml; give one such as runs/quickstart"
        )
    text = source.read_bytes()
    try:
        config = PipelineConfig.model_validate(read_yaml(source))
    except (ConfigError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(
            f"{source} is not a pipeline this version can read ({first}); use the version that made the run"
        ) from error
    record = read_json(folder / "run.json") or {}
    branches = [branch for name, stage in config.stages.items() for branch in read_branches(folder, name, stage)]
    evaluations = [e for branch in branches if branch.config.type == "evaluate" for e in read_evaluations(branch)]
    digest = str(record.get("digest") or hashlib.sha256(text).hexdigest())
    probes = [probe for branch in branches if branch.config.type == "probe" if (probe := read_probe(branch))]
    return Run(folder, config, digest, record, branches, evaluations, probes)


def read_branches(folder: Path, stage: str, config: StageConfig) -> list[BranchRecord]:
    """The stage itself, or one branch per variant of a stage that fans out."""
    if isinstance(config, TrainStage):
        variants = config.model.variants
        if config.model.fans_out:
            return [read_branch(folder, f"{stage}/{variant}", stage, variant, config) for variant in variants]
        return [read_branch(folder, stage, stage, next(iter(variants), None), config)]
    return [read_branch(folder, stage, stage, None, config)]


def read_branch(folder: Path, id: str, stage: str, variant: str | None, config: StageConfig) -> BranchRecord:
    """Read `stages/<id>/`."""
    home = folder / "stages" / id
    spec = read_spec(home / "model") or read_spec(home / "init")
    return BranchRecord(
        id=id,
        stage=stage,
        variant=spec.backbone.variant if spec else variant,
        config=config,
        folder=home,
        status=read_json(home / "status.json") or {},
        rows=read_lines(home / "metrics.jsonl"),
        events=read_lines(home / "events.jsonl"),
        surgery=read_json(home / "surgery.json"),
        spec=spec,
    )


def read_evaluations(branch: BranchRecord) -> list[Evaluation]:
    """The models evaluated by one stage, from its evaluation.json and, for classifiers, confusion.npz."""
    found = read_json(branch.folder / "evaluation.json") or {}
    schema, arrays = schema_of(found), read_arrays(branch.folder / CONFUSION)
    per_class, curves = (read_table(branch.folder / name) for name in (PER_CLASS, PRECISION_RECALL))
    return [
        Evaluation(
            stage=branch.id,
            dataset=branch.config.data_read["data"],
            model=model,
            classes=arrays["classes"].tolist() if "classes" in arrays else [],
            schema=schema,
            measures=schema.of(figures),
            samples=figures.get("samples"),
            bad_samples=figures.get("bad_samples"),
            confusion=arrays.get(f"arr_{number}"),
            per_class=[row for row in per_class if row.get("model") == model],
            precision_recall=[row for row in curves if row.get("model") == model],
            intervals=figures.get("intervals", {}),
        )
        for number, (model, figures) in enumerate((found.get("models") or {}).items())
    ]


def read_probe(branch: BranchRecord) -> ProbeRecord | None:
    """The results of a probe stage; None if it has not finished."""
    found, data = read_json(branch.folder / "probe.json"), branch.config.data_read
    if found is None:
        return None
    models = found.get("models") or {}
    train, test = data["data.train"], data["data.test"]
    return ProbeRecord(branch.id, train, test, str(found.get("features", "")), schema_of(found), models)


def read_spec(bundle: Path) -> ModelSpec | None:
    """The specification of a bundle, without its weights."""
    found = read_json(bundle / "model.json")
    try:
        return ModelSpec.from_dict(found["spec"]) if found else None
    except (KeyError, TypeError, ModelError):
        return None
