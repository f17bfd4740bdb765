from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError
from pipeline.stages.folder import FINISHED, RUNNING, RunFolder, StageFolder, Status

HOLD = """
import sys
from pathlib import Path
from pipeline.stages.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "quick")


def test_status_is_read_back(run: RunFolder) -> None:
    folder = run.stage("pretrain/nano")
    assert folder.status() is None
    status = Status(FINISHED, "pretrain", "d", {"seed": 1}, started=2.0, attempts=1, result={"steps": 5})
    folder.write_status(status)
    assert folder.status() == status
    assert run.stage_ids() == ["pretrain/nano"]


@pytest.mark.parametrize("content", ['{"state": ', '{"state": "finished", "colour": "red"}', "{}", "[]"])
def test_a_status_that_cannot_be_read_is_an_error(run: RunFolder, content: str) -> None:
    folder = run.stage("pretrain")
    folder.path.mkdir(parents=True)
    (folder.path / "status.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"status\.json cannot be read .*; remove it to run the stage again$"):
        folder.status()


def test_record_is_kept(run: RunFolder) -> None:
    assert run.record() == {}
    run.write_record({"mlflow_run_id": "x"})
    assert run.record() == {"mlflow_run_id": "x"}


@pytest.mark.parametrize("content", ['{"mlflow', "[]"])
def test_a_torn_record_is_an_error(run: RunFolder, content: str) -> None:
    run.path.mkdir(parents=True)
    (run.path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        run.record()


def test_events_are_appended(run: RunFolder) -> None:
    folder = run.stage("pretrain")
    folder.event("restart", "workers were lost", restart=1)
    folder.event("resume", "resumes at step 4")
    first, second = (json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines())
    assert (first["event"], first["message"], first["restart"]) == ("restart", "workers were lost", 1)
    assert second["time"] >= first["time"]


def test_set_aside_keeps_all_that_came_before(run: RunFolder) -> None:
    folder = run.stage("pretrain/nano")
    for content in ("first", "second"):
        folder.write_status(Status(FINISHED, "pretrain", content, {}))
        aside = folder.set_aside()
        found = StageFolder(aside).status()
        assert found is not None
        assert found.digest == content
    assert [path.name for path in sorted(folder.path.parent.iterdir())] == ["nano.superseded-1", "nano.superseded-2"]
    assert folder.status() is None
    assert run.stage_ids() == []


def test_a_second_process_is_refused_and_named_the_first(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run.path],
        env=os.environ | {"SLURM_JOB_ID": "17"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        expected = rf"quick is in use by process {holder.pid} on {re.escape(socket.gethostname())}, SLURM job 17; wait"
        with pytest.raises(CheckpointError, match=expected), run.locked():
            pass
        holder.kill()
        holder.wait()
    with run.locked():  # the lock went with its process
        assert (run.path / ".lock").read_text() == f"{os.getpid()} on {socket.gethostname()}"


def test_a_file_system_without_locks_is_an_error(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    expected = r"quick cannot be locked \(Function not implemented\); mount its file system with file locks"
    with pytest.raises(CheckpointError, match=expected), run.locked():
        pass


def test_the_lock_is_given_back(run: RunFolder) -> None:
    for _ in range(2):
        with run.locked():
            run.stage("pretrain").write_status(Status(RUNNING, "pretrain", "d", {}))
