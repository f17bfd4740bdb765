from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cluster.fork_server import ForkServer

PROGRAM = """
import json, os, random, signal, sys
import numpy
from pathlib import Path
json.dump({
    "arguments": sys.argv[1:], "input": sys.stdin.read(), "name": __name__, "path": sys.path,
    "folder": os.getcwd(), "parent": os.getppid(), "group": os.getpgrp(), "preloaded": "light" in sys.modules,
    "own": os.environ.get("OWN"), "client": os.environ["CLIENT"],
    "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "oom_score": int(Path("/proc/self/oom_score_adj").read_text()),
    "files": sorted(int(file) for file in os.listdir("/proc/self/fd"))[:-1],
    "random": [random.random(), numpy.random.rand()],
}, sys.stdout)
print("said", file=sys.stderr)
sys.exit(3)
"""
DRAW = """
import json, sys, threading
import ray
drawn = []
def draw():
    drawn.append(ray.ObjectRef.from_random().hex())
draw()
thread = threading.Thread(target=draw)
thread.start()
thread.join()
json.dump({"drawn": drawn, "torch": "torch" in sys.modules}, sys.stdout)
"""
SLEEP = "import time\nprint('runs', flush=True)\ntime.sleep(1000)"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program for workers to run, and a light module to preload."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "light.py").write_text("import numpy")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


@pytest.fixture
def server(program: Path) -> Iterator[ForkServer]:
    with ready("light", program.parent) as server:
        yield server


@contextmanager
def ready(preloaded: str, folder: Path) -> Iterator[ForkServer]:
    """A server that has imported a module, and forks or refuses to."""
    program = folder / "parent.py"
    program.write_text("import os; print(os.getppid())")
    with ForkServer() as server:
        process = server.start(preloaded)
        while True:
            _, parent, said = run(server, program)
            if said or parent == process.pid:
                break
            assert process.poll() is None, "it has ended"
        yield server


def start(server: ForkServer, program: Path, *arguments: str, **environment: str) -> psutil.Popen:
    """Run a program as Ray does."""
    command = f"CLIENT=$$ exec {server.command} {shlex.join([str(program), *arguments])}"
    return psutil.Popen(
        ["bash", "-c", "echo 321 > /proc/self/oom_score_adj; " + command],
        env=os.environ | environment,
        cwd=program.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def run(server: ForkServer, program: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """The exit status of a program, what it found and what it said."""
    process = start(server, program, *arguments, **environment)
    out, error = process.communicate("typed", timeout=120)
    return process.returncode, json.loads(out), error


def process_of(server: ForkServer) -> psutil.Popen:
    assert server._process
    return server._process


def start_sleeping(server: ForkServer, program: Path) -> tuple[psutil.Popen, psutil.Process]:
    """A client and its worker, which sleeps."""
    program.write_text(SLEEP)
    client = start(server, program)
    assert client.stdout.readline() == "runs\n"
    [worker] = process_of(server).children()
    return client, worker


def test_a_worker_is_a_fork_in_its_clients_place(server: ForkServer, program: Path) -> None:
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        code, first, said = run(server, program, "a", "b c", OWN="1")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    assert (code, first["arguments"], first["input"], said) == (3, ["a", "b c"], "typed", "said\n")
    assert (first["name"], first["parent"], first["preloaded"]) == ("__main__", process_of(server).pid, True)
    assert (first["folder"], first["own"], first["oom_score"]) == (str(program.parent), "1", 321)
    assert first["group"] == int(first["client"])
    assert first["blocked"] == [signal.SIGUSR2]
    assert first["files"] == [0, 1, 2]

    code, second, _ = run(server, program, OWN="2", PYTHONPATH=f"/first{os.pathsep}{os.environ['PYTHONPATH']}")
    assert (code, second["own"], second["parent"], second["blocked"]) == (3, "2", process_of(server).pid, [])
    assert second["path"][0] == "/first"
    assert not set(first["random"]) & set(second["random"])


def test_a_client_ends_as_its_worker_does_and_collects_it(server: ForkServer, program: Path) -> None:
    client, worker = start_sleeping(server, program)
    worker.kill()
    assert client.wait(timeout=60) == 128 + signal.SIGKILL
    assert not worker.is_running(), "it is not collected, so Ray would take it to be alive"


def test_a_worker_is_killed_with_its_client(server: ForkServer, program: Path) -> None:
    client, worker = start_sleeping(server, program)
    other = start(server, program)
    assert other.stdout.readline() == "runs\n"
    client.kill()
    client.wait()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()
    assert len(process_of(server).children()) == 1, "the other worker goes on"
    other.kill()


def test_workers_end_with_the_context(program: Path) -> None:
    with ready("light", program.parent) as server:
        client, worker = start_sleeping(server, program)
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()
    assert client.wait(timeout=60) in (1, 128 + signal.SIGKILL), "whether or not it was told how the worker ended"
    assert not Path(server.command.split()[-1]).exists()


def test_workers_end_with_a_driver_that_is_killed(program: Path) -> None:
    program.write_text(SLEEP)
    code = """
from pipeline.cluster import fork_server
server = fork_server.ForkServer()
print(server.command, server.start("light").pid, flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        *command, server = driver.stdout.readline().split()
        client = psutil.Popen([*command, str(program)], stdout=subprocess.PIPE, text=True)
        assert client.stdout.readline() == "runs\n"
        processes = [psutil.Process(int(server)), *psutil.Process(int(server)).children()]
        assert len(processes) == 2
        driver.kill()
    _, alive = psutil.wait_procs([*processes, client], timeout=60)
    assert not alive


def test_without_a_server_a_worker_starts_by_itself(server: ForkServer, program: Path) -> None:
    process_of(server).kill()
    process_of(server).wait()
    code, seen, said = run(server, program, "a")
    assert (code, seen["arguments"], seen["preloaded"], seen["parent"]) == (3, ["a"], False, os.getpid())
    assert said == "said\n"


def test_a_worker_does_not_wait_for_a_server_that_is_stopped(server: ForkServer, program: Path) -> None:
    assert run(server, program)[1]["preloaded"]
    process_of(server).suspend()
    process = start(server, program)
    process.stdin.close()
    assert process.wait(timeout=120) == 3
    process_of(server).resume()  # it holds the output open until then
    assert not json.loads(process.stdout.read())["preloaded"]
    assert run(server, program)[1]["preloaded"]
    assert not process_of(server).children(), "it has forked for a client that is gone"


def test_a_server_with_threads_forks_nothing_and_says_so(program: Path) -> None:
    (program.parent / "modules" / "light.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=[1000], daemon=True).start()"
    )
    with ready("light", program.parent) as server:
        for _ in range(2):
            _, seen, said = run(server, program)
            assert not seen["preloaded"]
            assert said == "not forked: the server has 2 threads, of which forks would have one\nsaid\n"


def test_forks_draw_different_random_ids_from_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that ranks import; NumPy would start threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "draw.py").write_text(DRAW)
    with ready("pipeline.train.preload", tmp_path) as server:
        found = [run(server, tmp_path / "draw.py") for _ in range(2)]
    assert [(said, seen["torch"]) for _, seen, said in found] == [("", True)] * 2
    drawn = [id for _, seen, _ in found for id in seen["drawn"]]
    assert len(set(drawn)) == len(drawn) == 4


@pytest.mark.parametrize(("imported", "alike"), [("ray", False), ("ray.train", True)])
def test_it_is_noticed_if_forks_draw_the_same_ids(imported: str, alike: bool) -> None:
    code = f"import {imported}; from pipeline.cluster.fork_server import drawn_in_a_fork as draw; a, b = draw(), draw()"
    code += "; print(len(a), a == b)"
    printed = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == f"28 {alike}\n"


def test_a_server_that_has_drawn_random_ids_forks_nothing_and_says_so(program: Path) -> None:
    (program.parent / "modules" / "light.py").write_text("import ray; ray.ObjectRef.from_random()")
    with ready("light", program.parent) as server:
        _, seen, said = run(server, program)
    assert not seen["preloaded"]
    assert said == "not forked: two forks drew the same random id from Ray\nsaid\n"
