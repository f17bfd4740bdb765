from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.export import RegisterConfig
from pipeline.config.load import dump_config
from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_spec
from pipeline.stages.attempt import run_branch
from pipeline.stages.context import RunContext
from pipeline.stages.deliveries import Deliveries
from pipeline.stages.folder import FINISHED, StageFolder, Status
from pipeline.stages.progress import Progress
from pipeline.stages.resolve import Branch, stage_branches
from pipeline.stages.tracking import StageTracking
from pipeline.stages.types.export.run import ExportStageRun
from pipeline.stages.types.train.outcome import finished_model
from pipeline.tracking.models import logged_models


def export_branch(context: RunContext) -> tuple[Branch, StageFolder]:
    """The export stage, with the model that it hands on."""
    spec = build_spec("nano", image_size=28, channels=1, num_classes=10, depth=1)
    preprocess = Preprocess((0.5,), (0.5,), 1, (28, 28))
    model = context.folder.stage("finer").model
    Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess).save(model)
    context.folder.config.write_text(dump_config(context.config))
    branch = next(branch for branch in stage_branches(context.config) if branch.id == "export")
    return branch, context.folder.stage("export")


def run_once(context: RunContext, branch: Branch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a branch as a new `minivit run` does; returns what it says."""
    context.progress = Progress()  # made here, it speaks where this test listens
    context.parent_run_id = context.tracker.start("quick", run_id=None)
    with Deliveries(context) as deliveries:
        run_branch(context, branch, deliveries)
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
    trained: Any = SimpleNamespace(
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
        patch.setattr(ExportStageRun, "run", lambda self, status: 1 / 0)
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
