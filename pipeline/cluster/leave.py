"""The preStop hook of pods: lets a run commit before Kubernetes stops its container.

Usage: python -P -m pipeline.cluster.leave SECONDS, inside the container.

In the driver's pod, the run gets SIGTERM, commits and exits with status 75, which KubeRay treats as a failure and
restarts. In a worker's pod, Ray drains the node: its ranks commit and leave, and the run resumes on other nodes.
Returns when the run or the ranks have ended, after SECONDS at the latest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil

from pipeline.errors import ClusterError

RANK = "ray::RayTrainWorker"  # the name that Ray gives to the process of a rank
NODE_ID = "--node_id="
POLL_S = 0.5


def leave(grace_s: float) -> None:
    """Ask the run or the ranks in this container to leave, and wait for them. Raises `ClusterError` outside one."""
    if "MINIVIT_IN_CONTAINER" not in os.environ:
        raise ClusterError(
            "MINIVIT_IN_CONTAINER is not set, so this is not a container of the pipeline's image; run this only in "
            "one, since it would stop every run on any other machine"
        )
    due = time.monotonic() + grace_s
    if runs := processes(is_run):
        for process in runs:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(runs, timeout=grace_s)
    elif processes(is_rank):
        announce(grace_s)
        while processes(is_rank) and time.monotonic() < due:
            time.sleep(POLL_S)


def announce(grace_s: float) -> None:
    """Tell Ray that this container's node will be preempted."""
    [raylet] = processes(lambda command: Path(command[0]).name == "raylet")
    [node] = [word.removeprefix(NODE_ID) for word in raylet.cmdline() if word.startswith(NODE_ID)]
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "its pod is about to end"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(int(grace_s))], check=True)


def processes(wanted: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """The processes whose command line satisfies `wanted`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if (command := process.cmdline()) and wanted(command):
                found.append(process)
    return found


def is_run(command: list[str]) -> bool:
    """Whether this is `minivit run`, as the interpreter that its script starts."""
    return any(Path(word).name == "minivit" and following == "run" for word, following in pairwise(command))


def is_rank(command: list[str]) -> bool:
    return command[0].startswith(RANK)


if __name__ == "__main__":
    leave(float(sys.argv[1]))
