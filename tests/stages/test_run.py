from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import dump_config, parse_config
from pipeline.config.schema import PipelineConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.stages import preflight
from pipeline.stages.context import TRACKED, RunContext, find_datasets, tracking_store
from pipeline.stages.folder import FINISHED, RunFolder, Status
from pipeline.stages.run import parent_run, require_same_pipeline, require_samples, take_resources, without_password
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


def test_a_run_resumes_in_its_store_and_says_when_it_is_in_another(tracker: Tracker, folder: RunFolder) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text("name: quick")
    said: list[str] = []
    with parent_run(tracker, folder, "quick", said.append) as first:
        assert folder.record()[TRACKED] is False
    assert folder.record()[TRACKED] is True
    with parent_run(tracker, folder, "quick", said.append) as again:
        assert folder.record()[TRACKED] is False
    assert (again, said) == (first, [])
    assert folder.record().items() >= tracker.store.record.items()
    with pytest.raises(KeyError), parent_run(tracker, folder, "quick", said.append):
        raise KeyError
    assert folder.record()[TRACKED] is False
    folder.write_record({"mlflow_run_id": "f" * 32, "tracking_uri": "http://old:5000"})
    with parent_run(tracker, folder, "quick", said.append) as other:
        pass
    before = f"run {'f' * 32}, tracked in http://old:5000 so far"
    assert said == [f"quick: this MLflow store does not have {before}; the new run {other} replaces it"]


def test_a_finished_pipeline_asks_its_store_nothing_and_another_store_everything(
    config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(update={"runs_dir": str(tmp_path)})
    folder = RunFolder(tmp_path / config.name)
    asked: list[str] = []
    monkeypatch.setattr(preflight, "check_store", lambda store: asked.append(store.uri))
    store = tracking_store(config)
    folder.path.mkdir(parents=True)
    for record, asks in (({}, 1), (store.record | {TRACKED: False}, 1), (store.record | {TRACKED: True}, 0)):
        folder.write_record(record)
        asked.clear()
        preflight.preflight(config, find_datasets(config)[0])
        assert len(asked) == asks
    other = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": "http://other:5000"})})
    preflight.preflight(other, find_datasets(other)[0])
    assert asked == ["http://other:5000"]


def test_no_password_of_the_store_is_kept_with_a_run(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    raw["tracking"] = {"uri": "postgresql://me:$PASSWORD@host/db"}
    kept = dump_config(without_password(parse_config(raw, "c")))
    assert "hunter2" not in kept
    assert "postgresql://me:***@host/db" in kept


def test_stages_that_need_no_workers_need_no_cluster(context: RunContext) -> None:
    def connect() -> Any:
        raise AssertionError("connected")

    context.connect = connect
    take_resources(context, {"export"})
    with pytest.raises(AssertionError, match="connected"):
        take_resources(context, {"export", "larger"})


def test_every_worker_needs_a_sample_of_a_batch(config: PipelineConfig) -> None:
    batch = config.stages["larger"].global_batch_size  # type: ignore[attr-defined]
    require_samples("larger", config.stages["larger"], batch)
    with pytest.raises(ConfigError, match=rf"^stages.larger.global_batch_size: {batch} samples cannot be shared by"):
        require_samples("larger", config.stages["larger"], batch + 1)
