from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster.launch import FAULTS_OF_OURS, last_sentence, root_cause, worker_resources
from pipeline.cluster.resources import Resources
from pipeline.errors import DataError, PipelineError


class Wrapped(Exception):
    """Wraps an exception as Ray wraps those of workers."""

    def __init__(self, cause: BaseException | None) -> None:
        super().__init__("worker failed")
        self.cause = cause


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize("wrap", [lambda error: error, Wrapped, lambda error: Wrapped(Wrapped(error))])
def test_the_users_error_is_found_inside(wrap: type) -> None:
    error = DataError("a torn shard")
    assert root_cause(wrap(error), PipelineError) is error
    assert root_cause(chained(RuntimeError("outer"), wrap(error)), PipelineError) is error


@pytest.mark.parametrize("failure", [None, RuntimeError("rank lost"), Wrapped(None), Wrapped(OSError("socket"))])
def test_a_lost_rank_is_no_fault_of_ours(failure: BaseException | None) -> None:
    assert root_cause(failure, PipelineError) is None
    assert root_cause(failure, FAULTS_OF_OURS) is None


@pytest.mark.parametrize(
    "error", [KeyError("lr"), ValueError("Invalid beta parameter"), AssertionError("zero stage"), ZeroDivisionError()]
)
def test_a_fault_of_our_own_is_told_from_a_lost_rank(error: Exception) -> None:
    assert root_cause(Wrapped(error), FAULTS_OF_OURS) is error


def test_the_last_line_tells() -> None:
    assert last_sentence(RuntimeError("Traceback\n  File\n\nConnection reset by peer \n")) == "Connection reset by peer"
    assert last_sentence(RuntimeError()) == "RuntimeError"


def test_resources_name_gpus_only_where_there_are_some() -> None:
    assert worker_resources(Resources(1, 1, 3)) == {"CPU": 3.0}
    assert worker_resources(Resources(1, 1, 1, 1)) == {"CPU": 1.0, "GPU": 1.0}


PROGRAM = """
import os, sys
from pathlib import Path
from pipeline.cluster.launch import launch
from pipeline.cluster.session import connect
from pipeline.cluster.resources import Resources
from pipeline.config.cluster import ClusterConfig

def worker(job, context):
    import json, os, queue, sys
    from pathlib import Path
    print("printed to standard error", file=sys.stderr, flush=True)
    seen = {"environment": dict(os.environ), "path": sys.path, "folder": os.getcwd(), "queue": queue.__file__}
    Path(job).write_text(json.dumps(seen))

def too_large(job, context):
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = "3"
with connect(ClusterConfig()):
    import ray
    os.environ |= {"AWS_SECRET_ACCESS_KEY": sys.argv[2], "TEAM_TOKEN": sys.argv[2], "OTHER_TOKEN": sys.argv[2]}
    folder = Path(sys.argv[1])
    resources = Resources(1, 1)
    named = {"stall_timeout_s": 100.0, "env": ["TEAM_TOKEN"]}
    launch(worker, folder / "seen.json", resources, workers=1, name="job", folder=folder, **named)
    print(ray._private.worker._global_node.get_session_dir_path())
    try:
        launch(too_large, None, resources, workers=1, name="job", folder=folder, stall_timeout_s=100.0)
    except Exception as error:
        (folder / "told").write_text(f"{type(error).__name__} {error}")
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "1"
    try:
        launch(worker, None, Resources(1, 1, 999), workers=1, name="job", folder=folder, stall_timeout_s=100.0)
    except Exception as error:
        (folder / "late").write_text(f"{type(error).__name__} {error}")
"""


@pytest.mark.integration
def test_a_rank_has_the_users_settings_but_not_his_modules(tmp_path: Path) -> None:
    """Also, a second job reports at once that its rank ran out of GPU memory, and a third that there is no room."""
    home, folder = tmp_path / "home", tmp_path / "stage"
    home.mkdir()
    for name in ("json", "pipeline", "queue", "random", "torch"):
        (home / f"{name}.py").write_text("raise SystemExit('a module of the user')\n")
    secret = secrets.token_hex(16)
    command = [sys.executable, "-c", PROGRAM, str(folder), secret]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # as `minivit` sets it
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    seen = json.loads((folder / "seen.json").read_text())
    assert [seen["environment"].get(name) for name in ("AWS_SECRET_ACCESS_KEY", "TEAM_TOKEN")] == [secret, secret]
    assert "OTHER_TOKEN" not in seen["environment"]
    (folder / "seen.json").unlink()
    session = Path(done.stdout.split()[-1])
    written = [path for place in (folder, session) for path in place.rglob("*") if path.is_file()]
    assert any(session in path.parents for path in written)
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert "OMPI_COMM_WORLD_LOCAL_RANK" not in seen["environment"]
    assert str(home) not in (*seen["path"], seen["folder"])
    assert seen["queue"] == queue.__file__
    assert "printed to standard error" in (folder / "logs" / "rank-00000.log").read_text()
    assert (folder / "late").read_text() == "WorkersLate Ray did not start 1 workers in 1 s"
    told = (folder / "told").read_text()
    assert told.startswith("ClusterError stage: a GPU ran out of memory (CUDA out of memory. Tried to allocate 2 GiB);")
