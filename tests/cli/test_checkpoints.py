from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.checkpoints.manifest import Manifest, payload_files, record_file, write_manifest
from pipeline.cli.checkpoints import group
from pipeline.errors import CheckpointError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a committed and an uncommitted checkpoint of a branch."""
    root = tmp_path / "quick" / "stages" / "pretrain" / "nano" / "checkpoints"
    for step in (4, 8):
        folder = root / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(b"x" * 200_000)
    folder = root / "step-00000004"
    files = [record_file(folder, path) for path in payload_files(folder)]
    write_manifest(folder, Manifest(4, 4096, 2, 3, "d", {}, files, {}))
    return tmp_path / "quick"


def test_list_tells_what_each_holds(run: Path) -> None:
    result = CliRunner().invoke(group, ["list", str(run)], catch_exceptions=False)
    first, second = result.output.splitlines()
    assert first.endswith("step-00000004  step 4  4,096 samples  2 workers  ZeRO-3  0.2 MB")
    assert "step-00000008  not a checkpoint: " in second
    assert second.endswith("it was never committed")


def test_verify_names_what_does_not_hold(run: Path) -> None:
    result = CliRunner().invoke(group, ["verify", str(run)])
    assert isinstance(result.exception, CheckpointError)
    assert "1 checkpoints are not valid" in str(result.exception)
    first, second = result.output.splitlines()
    assert first.endswith("step-00000004  valid")
    assert "step-00000008  not valid: " in second


def test_a_valid_run_verifies(run: Path) -> None:
    for path in (run / "stages/pretrain/nano/checkpoints/step-00000008").iterdir():
        path.unlink()
    (run / "stages/pretrain/nano/checkpoints/step-00000008").rmdir()
    assert CliRunner().invoke(group, ["verify", str(run)]).exit_code == 0


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(group, ["list", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "none" in result.output
