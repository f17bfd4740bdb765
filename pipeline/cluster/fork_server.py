"""Forks Ray's workers from one process per machine that has already imported what they need.

Most of the time that a job takes to start goes into imports: Ray, Ray Train, torch and DeepSpeed, again in each helper
of Ray's and in each rank. Ray starts its workers by a command of our choice (`py_executable`), `fork_client.py`, which
hands over the worker's program, environment and files; the fork then runs that program as if it had been started anew.
Not on machines with GPUs: DeepSpeed asks CUDA when it is imported, which then does not work in a fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster import fork_client
from pipeline.cluster.environment import shared_with_ranks, take_environment

# What Ray's workers, the controller of a job and its ranks import.
PRELOADED = (
    "ray._private.workers.default_worker",
    "ray.train.v2.api.data_parallel_trainer",
    "pipeline.cluster.rank",
    "pipeline.train.worker",
    "pipeline.train.evaluate",
    "pipeline.train.probe",
)
SERVER = ("-m", __name__)
RECEIVE_TIMEOUT_S = 10.0


class ForkServer:
    """A fork server for the workers that this driver's job has on this machine; ends with this process at the latest.

    Use it as a context manager. `command` is Ray's `py_executable`. The first worker makes the server import.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="minivit-")
        path = str(Path(self._folder.name, "socket"))
        self.command = shlex.join([sys.executable, "-I", "-S", fork_client.__file__, path])
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            self._process = psutil.Popen(
                [sys.executable, "-P", *SERVER, str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        """End the server and all workers."""
        with suppress(psutil.NoSuchProcess):  # then its workers end as those of any lost node
            for process in (*self._process.children(recursive=True), self._process):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.communicate()
        self._folder.cleanup()


def main(listening: socket.socket) -> None:
    """Fork a worker for each client until standard input closes; in each worker, run its program and return.

    The first client's environment is the one to import in, with what ranks take from the driver: Ray's own libraries
    read the job there when they are imported.
    """
    # Like Ray's daemons, it outlives what stops the run, which still has to commit.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    from_driver = shared_with_ranks(os.environ)
    job: list[str | None] | None = None
    for client, request, files in requests(listening):
        if job is None:
            job = job_of(request)
            enter(request["environment"])
            take_environment(from_driver)
            preload()
        if job_of(request) == job and os.fork() == 0:
            listening.close()
            become(request, files, client)
            sys.argv = request["command"]
            runpy.run_path(sys.argv[0], run_name="__main__")
            return
        for file in files:
            os.close(file)
        client.close()


def job_of(request: dict[str, Any]) -> list[str | None]:
    """What Ray's libraries remember of the environment from when they were imported, and differs between jobs."""
    return [request["environment"].get(name) for name in ("RAY_JOB_ID", "RAY_RAYLET_PID")]


def preload() -> None:
    """Import what workers need; one that cannot be imported is reported by the worker that needs it."""
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)
    with suppress(ImportError):
        from pipeline.train.engine import import_deepspeed

        import_deepspeed()
    gc.collect()
    gc.freeze()  # a collection in a worker would otherwise copy the pages of all these objects


def requests(listening: socket.socket) -> Iterator[tuple[socket.socket, dict[str, Any], list[int]]]:
    """Each client, its request, and its standard input, output and error, until this process's input closes."""
    signal.signal(signal.SIGCHLD, reap)
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        client, _ = listening.accept()
        client.settimeout(RECEIVE_TIMEOUT_S)
        try:
            yield client, *receive(client)
        except (OSError, ValueError):
            client.close()


def reap(*_: object) -> None:
    """Collect workers that have ended: Ray takes those that are not collected to be alive."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A client's request, and its standard input, output and error."""
    _, files, _, _ = socket.recv_fds(client, 1, 3)
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return json.loads(b"".join(parts)), files


def become(request: dict[str, Any], files: list[int], client: socket.socket) -> None:
    """Take a client's place. Its connection stays open until this process ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    enter(request["environment"])
    os.chdir(request["folder"])
    resource.setrlimit(resource.RLIMIT_NOFILE, request["open_files"])
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked_signals"])
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [folder for folder in folders if folder and folder not in sys.path]
    client.sendall(b"+")
    client.detach()


def enter(environment: dict[str, str]) -> None:
    """Make this the environment of the process."""
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
