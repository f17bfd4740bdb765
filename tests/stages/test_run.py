from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.export import RegisterConfig
from pipeline.config.load import dump_config, parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.errors import CheckpointError
from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.stages.context import RunContext
from pipeline.stages.folder import FINISHED, RunFolder, StageFolder, Status
from pipeline.stages.progress import Progress
from pipeline.stages.resolve import Branch, stage_branches
from pipeline.stages.run import STAGE_RUNS, Execution, parent_run, require_same_pipeline, without_password
from pipeline.stages.tracking import StageTracking
from pipeline.stages.train import finished_model
from pipeline.tracking.models import logged_models
from pipeline.tracking.runs import Tracker


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "quick")


def test_a_folder_of_this_pipeline_is_accepted(config: PipelineConfig, folder: RunFolder) -> None:
    require_same_pipeline(config, folder)
    folder.stage("pretrain/nano").write_status(Status(FINISHED, "pretrain", "d", {}))
    folder.stage("pretrain/nano").set_aside()
    folder.stage("larger").write_status(Status(FINISHED, "finetune", "d", {}))
    require_same_pipeline(config, folder)


@pytest.mark.parametrize(("stage_id", "kind"), [("pretrain/tiny", "pretrain"), ("larger", "pretrain"), ("x", "report")])
def test_a_folder_of_another_pipeline_is_refused(
    config: PipelineConfig, folder: RunFolder, stage_id: str, kind: str
) -> None:
    folder.stage(stage_id).write_status(Status(FINISHED, kind, "d", {}))
    with pytest.raises(
        CheckpointError, match=rf"quick belongs to another config: it has the {kind} stage '{stage_id}'"
    ):
        require_same_pipeline(config, folder)


def test_every_type_of_stage_can_be_run(raw: dict[str, Any]) -> None:
    data = {"train": "train", "test": "test"}
    raw["stages"]["probe"] = {"type": "probe", "models": ["finer"], "data": data, "methods": {"knn": {}}}
    config = parse_config(raw, "c")
    assert {type(stage) for stage in config.stages.values()} == set(STAGE_RUNS)


def export_branch(context: RunContext) -> tuple[Branch, StageFolder]:
    """The export stage, with the model that it hands on."""
    spec = build_spec("nano", image_size=28, channels=1, num_classes=10, depth=1)
    preprocess = Preprocess((0.5,), (0.5,), 1, (28, 28))
    model = context.folder.stage("finer").model
    Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess).save(model)
    (context.folder.path / "pipeline.yaml").write_text(dump_config(context.config))
    branch = next(branch for branch in stage_branches(context.config) if branch.id == "export")
    return branch, context.folder.stage("export")


def run_once(context: RunContext, branch: Branch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a branch as a new `minivit run` does; returns what it says."""
    context.progress = Progress()  # made here, it speaks where this test listens
    context.parent_run_id = context.tracker.start("quick", run_id=None)
    Execution(context)._run_branch(branch)
    return capsys.readouterr().err


def test_a_finished_stage_is_skipped_until_its_inputs_change(
    context: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    branch, folder = export_branch(context)
    assert "finished in" in run_once(context, branch, capsys)
    assert "skipped: already finished with the same inputs" in run_once(context, branch, capsys)
    stage = branch.stage.model_copy(update={"formats": ["safetensors", "torch-export"]})
    said = run_once(context, branch._replace(stage=stage), capsys)
    assert "runs again, because settings.formats (default to ['safetensors', 'torch-export']) changed" in said
    assert folder.path.with_name("export.superseded-1").is_dir()


def test_a_finished_model_is_logged_once_and_registered_by_the_export(
    context: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    branch, _ = export_branch(context)
    finer = context.folder.stage("finer")
    run_id = context.tracker.start("quick/finer", run_id=None)
    result = {"measures": {"loss": 0.4, "accuracy": 0.8}}
    status = Status(FINISHED, "finetune", "d", {}, mlflow_run_id=run_id, result=result, schema=CLASSIFICATION.to_dict())
    finer.write_status(status)
    trained = SimpleNamespace(
        artifacts=list,
        metrics=lambda result: {},
        finished_model=lambda status: finished_model("finer", finer, status),
        track_inputs=lambda run_id: None,
        register=lambda: None,
    )
    for _ in range(2):  # the second time as on a resume
        StageTracking(context, "finer", trained, status).deliver()
    asked = branch.stage.model_copy(update={"register_as": RegisterConfig(name="shoes")})
    said = run_once(context, branch._replace(stage=asked), capsys)
    assert "finer as shoes version 1, which is now its champion" in said
    [logged] = logged_models(context.tracker, run_id)
    champion = context.tracker.client.get_model_version_by_alias("shoes", "champion")
    assert champion.tags["minivit.model"] == logged.model_id
    assert (champion.tags["minivit.run"], champion.tags["minivit.value"]) == (run_id, "0.8")


def test_every_attempt_records_when_it_ran(
    context: RunContext, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    branch, folder = export_branch(context)
    with monkeypatch.context() as patch:
        patch.setattr(STAGE_RUNS[type(branch.stage)], "run", lambda self, status: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_once(context, branch, capsys)
    run_once(context, branch, capsys)
    status = folder.status()
    assert status is not None
    (failed_from, failed_at), (start, end) = status.spans
    assert status.started <= failed_from <= failed_at <= start <= end == status.ended


def test_a_stage_that_another_version_recorded_runs_again_and_says_so(
    context: RunContext, capsys: pytest.CaptureFixture[str]
) -> None:
    branch, folder = export_branch(context)
    run_once(context, branch, capsys)
    status = folder.status()
    assert status is not None
    status.inputs, status.digest = {"model": status.inputs["model"], "formats": ["safetensors"]}, "older"
    folder.write_status(status)
    said = run_once(context, branch, capsys)
    assert "export: runs again, because another version of this package recorded its inputs" in said
    assert (folder.path.with_name("export.superseded-1") / "export" / "safetensors").is_dir()


def test_a_run_resumes_in_its_store_and_says_when_it_is_in_another(tracker: Tracker, folder: RunFolder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "pipeline.yaml").write_text("name: quick")
    said: list[str] = []
    with parent_run(tracker, folder, "quick", said.append) as first:
        pass
    with parent_run(tracker, folder, "quick", said.append) as again:
        pass
    assert (again, said) == (first, [])
    assert folder.record().items() >= tracker.store.record.items()
    folder.write_record({"mlflow_run_id": "f" * 32, "tracking_uri": "http://old:5000"})
    with parent_run(tracker, folder, "quick", said.append) as other:
        pass
    before = f"run {'f' * 32}, tracked in http://old:5000 so far"
    assert said == [f"quick: this MLflow store does not have {before}; the new run {other} replaces it"]


def test_no_password_of_the_store_is_kept_with_a_run(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    raw["tracking"] = {"uri": "postgresql://me:$PASSWORD@host/db"}
    kept = dump_config(without_password(parse_config(raw, "c")))
    assert "hunter2" not in kept
    assert "postgresql://me:***@host/db" in kept
