from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.checkpoints.manifest import Manifest, MeterState, commit_manifest
from pipeline.checkpoints.shard_file import Span, write_shard
from pipeline.checkpoints.storage import LocalStorage
from pipeline.cli.checkpoints import group
from pipeline.errors import CheckpointError
from pipeline.stages.folder import FINISHED, RunFolder, Status


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two committed and an uncommitted checkpoint of a branch."""
    folder = RunFolder(tmp_path / "quick").stage("pretrain/nano")
    storage = LocalStorage(folder.checkpoints)
    for step in (4, 6, 8):
        layout, tensors = [[Span("weight", 0, 0, 50_000)]], {"0/weights": torch.zeros(50_000)}
        record = write_shard(storage, f"step-{step:08d}/rank-0.safetensors", layout, tensors)
        fixed: dict[str, Any] = {"metrics": {"val/loss": 0.5 * step}, "window": MeterState(0, 0, [[0.0]])}
        manifest = Manifest(step, 1024 * step, 2, 3, "d", {"variant": "nano"}, {"weight": [50_000]}, [record], **fixed)
        if step < 8:
            commit_manifest(storage, f"step-{step:08d}", manifest)
    status = Status(FINISHED, "pretrain", "d", {}, checkpoints=folder.checkpoints.name, keep_best="val/loss")
    folder.write_status(status)
    return tmp_path / "quick"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


@pytest.mark.parametrize("below", [".", "stages/pretrain/nano"])
def test_list_tells_what_each_holds(run: Path, below: str) -> None:
    first, second, third = invoke("list", run / below).output.splitlines()
    assert first.endswith("step-00000004  step 4  4,096 samples  2 workers  ZeRO-3  0.2 MB  best val/loss 2")
    assert second.endswith("step-00000006  step 6  6,144 samples  2 workers  ZeRO-3  0.2 MB")
    assert "step-00000008  not a checkpoint: " in third
    assert third.endswith("it was never committed")


def test_verify_names_what_does_not_hold(run: Path) -> None:
    result = invoke("verify", run)
    assert isinstance(result.exception, CheckpointError)
    assert "found 1 invalid checkpoint(s)" in str(result.exception)
    first, _, third = result.output.splitlines()
    assert first.endswith("step-00000004  valid")
    assert "step-00000008  invalid: " in third


def test_a_valid_run_verifies(run: Path) -> None:
    [path] = (run / "stages/pretrain/nano/checkpoints/step-00000008").iterdir()
    path.unlink()
    path.parent.rmdir()
    assert invoke("verify", run).exit_code == 0


def test_inspect_shows_the_newest_committed_one(run: Path) -> None:
    text = invoke("inspect", run).output
    assert "step-00000006\n" in text
    for line in ("step         6", "zero_stage   3", "model        nano, 1 tensors", "weights      0.2 MB"):
        assert f"  {line}\n" in text
    assert "rank-0.safetensors  200," in text


def test_inspect_as_json_is_the_manifest(run: Path) -> None:
    manifest = json.loads(invoke("inspect", run, "--step", 4, "--json").output)
    assert (manifest["step"], manifest["spec"], manifest["format"]) == (4, {"variant": "nano"}, 2)


def test_reshard_rewrites_in_place(run: Path) -> None:
    result = invoke("reshard", run, "--step", 6, "--files", 3)
    assert "step-00000006  3 files  0.2 MB" in result.output
    assert len(list((run / "stages/pretrain/nano/checkpoints/step-00000006").iterdir())) == 4
    assert "step-00000006  valid" in invoke("verify", run).output


def test_reshard_leaves_a_running_pipeline_alone(run: Path) -> None:
    with RunFolder(run).locked():
        result = invoke("reshard", run, "--files", 1)
    assert isinstance(result.exception, CheckpointError)
    assert "is in use by process" in str(result.exception)


def test_a_step_that_is_not_there_is_refused(run: Path) -> None:
    result = invoke("inspect", run, "--step", 5)
    assert isinstance(result.exception, CheckpointError)
    assert "found no checkpoint of step 5; see `minivit checkpoints list" in str(result.exception)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert invoke("list", tmp_path / "none").exit_code == 2
    result = invoke("list", tmp_path)
    assert isinstance(result.exception, CheckpointError)
    assert "has no training stage that has started; give a run's folder or a stage's" in str(result.exception)
