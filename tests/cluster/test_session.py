from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.runtime_env.runtime_env import RuntimeEnv, _merge_runtime_env

from pipeline.cluster import session
from pipeline.cluster.resources import Node, Resources
from pipeline.cluster.session import (
    answers_at,
    as_node,
    connect,
    idle_gpus_here,
    no_answer,
    require_answer,
    runtime_environment,
    start_here,
)
from pipeline.config.cluster import ClusterConfig
from pipeline.errors import ClusterError


@pytest.fixture
def port() -> Iterator[int]:
    """A port that accepts connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_gpus_of_this_machine_are_counted_without_asking_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr("pipeline.cluster.resources.DEVICES", tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = idle_gpus_here(ClusterConfig(), [Resources(1, 1)])
    assert told is not None
    assert told.startswith("2 GPUs stay idle on this machine")
    assert idle_gpus_here(ClusterConfig(), [Resources(1, 1, 1, 1)]) is None
    assert idle_gpus_here(ClusterConfig(address="10.0.0.1:6379"), [Resources(1, 1)]) is None


@pytest.mark.parametrize(("free", "cpus", "gpus"), [({"CPU": 4.0, "GPU": 2.0}, 0, 0), ({"CPU": 2.5}, 2, 2), ({}, 4, 2)])
def test_ray_leaves_out_what_is_not_free(free: dict[str, float], cpus: int, gpus: int) -> None:
    assert as_node("n", {"CPU": 4.0, "GPU": 2.0}, free) == Node("n", 4, 2, cpus, gpus)


def test_what_does_not_answer_is_no_node(port: int, closed_port: int) -> None:
    assert answers_at("127.0.0.1", port)
    assert not answers_at("127.0.0.1", closed_port)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_that_listens_is_taken(form: str, port: int) -> None:
    require_answer(form.format(port))


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(form: str, closed_port: int) -> None:
    address = form.format(closed_port)
    began = time.monotonic()
    expected = rf"^cluster\.address: no Ray cluster answers at {address} \(.*refused"
    with pytest.raises(ClusterError, match=expected), connect(ClusterConfig(address=address)):
        pass
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_impossible_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at {address}"):
        require_answer(address)


@pytest.mark.parametrize("address", ["auto", "local"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    require_answer(address)


def test_the_reason_is_one_line() -> None:
    error = no_answer("host:1", RuntimeError("Failed to connect to GCS. Last connection error: Traceback\n  File"))
    assert "answers at host:1 (Failed to connect to GCS); start one" in str(error)
    assert "(ValueError)" in str(no_answer("host:1", ValueError()))


def test_a_node_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises Exception itself where its processes take too long."""

    def start(options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because the raylet failed")

    monkeypatch.setattr(session, "start_here", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    refused = pytest.raises(
        ClusterError, match=r"^Ray did not start on this machine \(The current node timed out during"
    )
    with mock.patch.dict(os.environ), refused, connect(ClusterConfig()):
        pass


@pytest.mark.parametrize("gpus", [0, 1])
def test_workers_are_forked_where_there_are_no_gpus(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server imports only once Ray has started."""
    steps: list[Any] = []

    def start(options: dict[str, Any]) -> None:
        steps.append(options["runtime_env"].get("py_executable"))

    monkeypatch.setattr(session, "this_machine", lambda: Node("", 2, gpus, 2, gpus))
    monkeypatch.setattr(session, "own_nodes", list)
    monkeypatch.setattr(session, "start_here", start)
    monkeypatch.setattr(session, "end_here", lambda: steps.append("end"))
    monkeypatch.setattr(session.ForkServer, "start", lambda server: steps.append(server.command))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with mock.patch.dict(os.environ), connect(ClusterConfig()):
        pass
    if gpus:
        assert steps == [None, "end"]
    else:
        assert "fork_client.py" in steps[0]
        assert steps == [steps[0], steps[0], "end"]


def test_a_cluster_started_here_outlives_signals_and_takes_the_usable_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}

    def fail(**options: Any) -> None:
        started.update(options, blocked=signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        raise ConnectionError

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    former = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ConnectionError):
        start_here({})
    assert {signal.SIGTERM, signal.SIGUSR1} <= started["blocked"]
    assert started["num_cpus"] == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == former, "this process still gets them"


@pytest.mark.integration
@pytest.mark.parametrize("job", [None, {}, {"env_vars": {"A": "b"}}, {"working_dir": "gcs://job.zip"}])
def test_a_job_submitted_to_ray_keeps_its_working_folder(
    job: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray merges both, and refuses to start if they have a setting in common."""
    empty = str(tmp_path)
    assert runtime_environment(empty) == {"working_dir": empty}
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps({"runtime_env": job, "metadata": {}}))
    merged = _merge_runtime_env(RuntimeEnv(**(job or {})), RuntimeEnv(**runtime_environment(empty)))
    assert merged is not None
    assert merged["working_dir"] == (job or {}).get("working_dir", empty)


def test_a_cluster_of_its_own_that_is_gone_is_not_waited_for() -> None:
    program = """
import psutil
from pipeline.cluster.session import connect
from pipeline.cluster.resources import Resources
from pipeline.config.cluster import ClusterConfig
from pipeline.errors import ClusterError

with connect(ClusterConfig()) as cluster:
    one = Resources(1, 1)
    print(cluster.reserve("stage", one), "worker")
    daemons = psutil.Process().children(recursive=True)
    [raylet] = [child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"]
    raylet.kill()
    raylet.wait()
    try:
        cluster.reserve("stage", one)
    except ClusterError as error:
        print(error, flush=True)
print(len(psutil.wait_procs(daemons, timeout=30)[1]), "left")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert "1 worker" in done.stdout, done.stderr
    assert "the Ray cluster that this run started has died" in done.stdout
    assert "\n0 left" in done.stdout
