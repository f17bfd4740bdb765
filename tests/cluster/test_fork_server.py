from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cluster import fork_server
from pipeline.cluster.fork_server import ForkServer

# A server that imports one light module, as tests need no torch.
SERVER = """
import socket, sys
from pipeline.cluster import fork_server
def preload():
    import this_is_preloaded
fork_server.preload = preload
fork_server.main(socket.socket(fileno=int(sys.argv[1])))
"""
PROGRAM = """
import json, os, signal, sys
json.dump({
    "arguments": sys.argv[1:], "input": sys.stdin.read(), "folder": os.getcwd(), "parent": os.getppid(),
    "name": __name__, "preloaded": "this_is_preloaded" in sys.modules, "path": sys.path, "own": os.environ.get("OWN"),
    "rank": os.environ.get("RANK"), "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
}, sys.stdout)
print("said", file=sys.stderr)
sys.exit(3)
"""
JOB = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "7"}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program for workers to run, and a light server to fork them."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "this_is_preloaded.py").write_text("import sys; sys.imported_under = __import__('os').environ.copy()")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setattr(fork_server, "SERVER", ("-c", SERVER))
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


@pytest.fixture
def server(program: Path) -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def start(server: ForkServer, program: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Run a program as Ray does."""
    line = " ".join(["exec", server.command, shlex.join([str(program), *arguments])])
    return subprocess.Popen(
        ["bash", "-c", line],
        env=os.environ | JOB | environment,
        cwd=program.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(server: ForkServer, program: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    process = start(server, program, *arguments, **environment)
    out, error = process.communicate("typed", timeout=60)
    assert error == "said\n"
    return process.returncode, json.loads(out)


def test_a_worker_is_a_fork_that_takes_the_place_of_its_client(server: ForkServer, program: Path) -> None:
    server_id = server._process.pid
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        code, seen = run(server, program, "a", "b c", OWN="1")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    assert (code, seen["arguments"], seen["input"], seen["own"]) == (0, ["a", "b c"], "typed", "1")
    assert (seen["name"], seen["parent"], seen["preloaded"]) == ("__main__", server_id, True)
    assert seen["folder"] == str(program.parent)
    assert seen["blocked"] == [signal.SIGUSR2]

    code, seen = run(server, program, OWN="2", PYTHONPATH=f"/first{os.pathsep}{os.environ['PYTHONPATH']}")
    assert (code, seen["own"], seen["parent"], seen["blocked"]) == (0, "2", server_id, [])
    assert seen["path"][0] == "/first"
    deadline = time.monotonic() + 30
    while server._process.children():
        assert time.monotonic() < deadline, "a worker that has ended is not collected"
        time.sleep(0.05)


def test_imports_see_the_workers_environment_and_the_drivers_settings(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("LOCAL_RANK", "7")
    program.write_text("import json, sys\nprint(json.dumps(sys.imported_under))\nprint('said', file=sys.stderr)")
    with ForkServer() as server:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        _, seen = run(server, program, OWN="1")
    assert seen.items() >= (JOB | {"OWN": "1", "OMP_NUM_THREADS": "5"}).items()
    assert "LOCAL_RANK" not in seen


def test_without_a_server_of_its_job_a_worker_starts_by_itself(server: ForkServer, program: Path) -> None:
    assert run(server, program)[0] == 0
    code, seen = run(server, program, "a", RAY_JOB_ID="02000000")
    assert (code, seen["arguments"], seen["preloaded"], seen["parent"]) == (3, ["a"], False, os.getpid())
    assert server._process.stdin is not None
    server._process.stdin.close()  # as when the driver is killed
    server._process.wait(timeout=60)
    code, seen = run(server, program, "a")
    assert (code, seen["arguments"], seen["preloaded"]) == (3, ["a"], False)


def test_workers_end_with_the_context(program: Path) -> None:
    program.write_text("import sys, time\nprint('runs', flush=True)\ntime.sleep(1000)")
    with ForkServer() as server:
        process = start(server, program)
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        [worker] = server._process.children()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()
    assert process.wait(timeout=60) == 0
    assert not Path(server.command.split()[-1]).exists()


def test_what_is_preloaded_exists() -> None:
    code = "import importlib.util, sys; assert all(importlib.util.find_spec(name) for name in sys.argv[1:])"
    subprocess.run([sys.executable, "-P", "-c", code, *fork_server.PRELOADED], check=True)
