"""Forks Ray's workers on this machine from a process that has already imported what ranks need.

Most of the time that ranks take to start goes into importing torch, DeepSpeed and Ray. Ray starts its workers by a
command of our choice (`py_executable`), `fork_client.py`, which hands over the worker's program, environment and files;
the fork then runs that program as if it had been started anew.

What a fork would share wrongly with others must not be imported here: threads, which only the server would have, and
random numbers that Ray's C++ code draws in advance, as importing Ray Train makes it do. The server looks for both, and
then forks nothing. Nor is it for machines with GPUs: DeepSpeed's import asks CUDA, which then fails in a fork.
"""

from __future__ import annotations

import ctypes
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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster import fork_client
from pipeline.cluster.environment import take_environment

RECEIVE_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1  # of Linux


class ForkServer:
    """A fork server for the workers of a Ray cluster that this process starts; neither outlives this process.

    Use it as a context manager. `command` is Ray's `py_executable`. `start` it once Ray has started, whose daemons have
    30 s for that; workers wait a while for it.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="minivit-")
        path = str(Path(self._folder.name, "socket"))
        self.command = shlex.join([sys.executable, "-I", "-S", fork_client.__file__, path])
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen()
        self._process: psutil.Popen | None = None

    def start(self, preloaded: str = "pipeline.train.preload") -> psutil.Popen:
        """Start the process, which first imports a module. It ends with the thread that calls this."""
        file = self._listening.fileno()
        self._process = psutil.Popen(
            [sys.executable, "-P", "-m", __name__, str(file), str(os.getpid()), preloaded],
            pass_fds=[file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._listening.close()
        return self._process

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, all workers and what they have started."""
        self._listening.close()
        if self._process:
            with suppress(psutil.NoSuchProcess):
                for process in (*self._process.children(recursive=True), self._process):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            self._process.wait()
        self._folder.cleanup()


@dataclass(frozen=True)
class Worker:
    id: int
    ended: int  # a file descriptor that can be read once the process has ended
    client: socket.socket  # can be read once the client has ended


def main(listening: socket.socket, driver: int, preloaded: str) -> None:
    """Import a module, then fork a worker for each client; in each worker, run its program and return."""
    end_with(driver)
    # Like Ray's daemons, it outlives what stops the run, which still has to commit.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    take_environment({})
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else NumPy starts a thread for each CPU when it is imported
    with suppress(ImportError):  # which the rank will meet again, and report
        importlib.import_module(preloaded)
    workers: list[Worker] = []
    while True:
        watched = [file for worker in workers for file in (worker.ended, worker.client)]
        ready, _, _ = select.select([listening, *watched], [], [])
        for worker in workers[:]:
            if worker.ended in ready or worker.client in ready:
                workers.remove(worker)
                collect(worker)
        if listening in ready and (command := fork_for_next(listening, workers)):
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
            return


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


@cache
def reason_not_to_fork() -> str | None:
    """Import what every worker runs, in the environment of the first; returns what would go wrong in forks."""
    importlib.import_module("ray._private.workers.default_worker")
    gc.collect()
    gc.freeze()  # a collection in a worker would otherwise copy the pages of all these objects
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        return f"the server has {threads} threads, of which forks would have one"
    if drawn_in_a_fork() == drawn_in_a_fork():
        return "two forks drew the same random id from Ray"
    return None


def drawn_in_a_fork() -> bytes:
    """A random id that Ray draws in a fork of this process."""
    from ray import ObjectRef

    reading, writing = os.pipe()
    if (fork := os.fork()) == 0:
        os.write(writing, ObjectRef.from_random().binary())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        drawn = pipe.read()
    os.waitpid(fork, 0)
    return drawn


def fork_for_next(listening: socket.socket, workers: list[Worker]) -> list[str] | None:
    """Fork a worker for the next client. Returns its command in the worker, and None in the server."""
    server = os.getpid()
    with ExitStack() as stack:
        try:
            client = stack.enter_context(listening.accept()[0])
            client.settimeout(RECEIVE_TIMEOUT_S)
            _, files, _, _ = socket.recv_fds(client, 1, 3)
            for file in files:
                stack.callback(os.close, file)
            request = json.loads(stack.enter_context(client.makefile()).readline())
            enter(request["environment"])
            refusal = reason_not_to_fork()
            client.sendall(f"-{refusal}".encode() if refusal else b"+")
            if refusal:
                return None
            worker = os.fork()
        except (OSError, ValueError):  # the client has given up
            return None
        if worker:
            workers.append(Worker(worker, os.pidfd_open(worker), client.dup()))
            return None
        end_with(server)
        listening.close()
        for other in workers:
            os.close(other.ended)
            other.client.close()
        become(request, files)
        return request["command"]


def become(request: dict[str, Any], files: list[int]) -> None:
    """Take on what a client's process has and the server's has not."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.setpgid(0, request["group"])  # Ray gives each worker a process group, which it kills when the worker has ended
    os.chdir(request["folder"])
    resource.setrlimit(resource.RLIMIT_NOFILE, request["open_files"])
    Path("/proc/self/oom_score_adj").write_text(request["oom_score"])
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked_signals"])
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [folder for folder in folders if folder and folder not in sys.path]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # which, unlike Python's own, is not seeded anew by a fork


def collect(worker: Worker) -> None:
    """Tell the client of a worker that has ended how it ended; kill the worker if the client has been killed.

    Ray takes workers that have ended and are not collected to be alive.
    """
    os.kill(worker.id, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(worker.id, 0)[1])
    os.close(worker.ended)
    with worker.client, suppress(OSError):
        worker.client.sendall(bytes([code if code >= 0 else 128 - code]))


def enter(environment: dict[str, str]) -> None:
    """Make this the environment of the process."""
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
