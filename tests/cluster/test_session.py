from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.runtime_env.runtime_env import RuntimeEnv, _merge_runtime_env

from pipeline.cluster.resources import Node, Resources, settle
from pipeline.cluster.session import (
    Cluster,
    answers_at,
    as_node,
    connect,
    idle_gpus_here,
    no_answer,
    require_answer,
    runtime_environment,
)
from pipeline.config.schema import ClusterConfig, ElasticWorkers, ResourcesConfig
from pipeline.errors import ClusterError


@pytest.fixture
def port() -> Iterator[int]:
    """A port that takes connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cluster(*nodes: tuple[int, int]) -> Cluster:
    """A cluster of nodes with so many CPUs and GPUs."""
    return Cluster("this machine", lambda: [Node(f"n{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(nodes)])


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "fits"),
    [
        (2, 2, 0, True),
        (4, 1, 0, True),
        (2, 3, 0, False),
        (5, 1, 0, False),
        (1, 1, 1, True),
        (2, 1, 1, False),
        (ElasticWorkers(min=2, max=9), 2, 0, True),
    ],
)
def test_a_stage_must_fit_as_a_whole(workers: int | ElasticWorkers, cpus: int, gpus: int, fits: bool) -> None:
    asked = ResourcesConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    resources = settle(asked, [])
    if fits:
        cluster((2, 1), (2, 0)).require(resources, "stages.pretrain")
        return
    expected = (
        rf"^stages\.pretrain: {workers} workers with {cpus} CPUs?( and 1 GPU)? each do not fit on the cluster at this "
        rf"machine, which has room for \d \(2 CPUs and 1 GPUs, 2 CPUs and 0 GPUs\); lower "
        r"cluster\.workers or add nodes$"
    )
    with pytest.raises(ClusterError, match=expected):
        cluster((2, 1), (2, 0)).require(resources, "stages.pretrain")


@pytest.mark.parametrize(
    ("gpus", "asked", "count"),
    [
        ([0, 0], [0], None),
        ([4, 0], [0, 1], None),
        ([1, 0], [0], "1 GPU stays"),
        ([4, 2], [0, 0], "6 GPUs stay"),
    ],
)
def test_gpus_that_nobody_asks_for_are_told_of(gpus: list[int], asked: list[int], count: str | None) -> None:
    told = cluster(*((2, number) for number in gpus)).idle_gpus(Resources(1, 1, 1, n) for n in asked)
    sentence = "idle on this machine, as no stage asks for one; set cluster.gpus_per_worker=auto to train on GPUs"
    assert told == (f"{count} {sentence}" if count else None)


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


def test_stages_share_the_cluster() -> None:
    nodes = cluster((4, 0), (4, 0))
    four, elastic = Resources(4, 4), Resources(2, 6)
    assert (nodes.reserve("a", four), nodes.held("a")) == (4, 4)
    assert nodes.reserve("b", elastic) == 4
    assert nodes.reserve("c", Resources(1, 1)) == 0
    assert (nodes.room("a"), nodes.room("b")) == (4, 4)
    nodes.release("a")
    assert (nodes.room("b"), nodes.held("b")) == (6, 4)
    assert nodes.reserve("b", elastic) == 6
    assert nodes.reserve("c", four) == 0
    nodes.release("c")  # never held anything


def busy(*nodes: tuple[int, int]) -> list[Node]:
    """Nodes with so many CPUs, of which so many are held."""
    return [Node(f"n{number}", cpus, 0, held) for number, (cpus, held) in enumerate(nodes)]


def test_what_jobs_of_others_hold_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.session.FREED_WITHIN_S", 0.3)
    found = busy((4, 3), (4, 0))
    shared = Cluster("head:6379", lambda: found)
    assert shared.others() == "; other jobs hold 3 of 8 CPUs"
    assert shared.reserve("a", Resources(6, 6)) == 0
    assert shared.reserve("a", Resources(1, 9)) == 5
    found[:] = busy((4, 4), (4, 4))  # its own, too
    assert shared.others() == "; other jobs hold 3 of 8 CPUs"
    assert shared.room("a") == 5
    found[:] = busy((4, 1), (4, 4))  # theirs are gone
    assert shared.others() == ""
    assert shared.room("a") == 8
    assert Cluster("this machine", lambda: found, shared=False).reserve("a", Resources(1, 9)) == 8


def test_what_a_job_of_ours_held_is_free_a_moment_later() -> None:
    answers = iter([busy((2, 0)), busy((2, 2)), busy((2, 2))])
    shared = Cluster("head:6379", lambda: next(answers, busy((2, 0))))
    assert shared.reserve("next", Resources(2, 2)) == 2


@pytest.mark.parametrize(("free", "cpus", "gpus"), [({"CPU": 4.0, "GPU": 2.0}, 0, 0), ({"CPU": 2.5}, 2, 2), ({}, 4, 2)])
def test_ray_leaves_out_what_is_not_free(free: dict[str, float], cpus: int, gpus: int) -> None:
    assert as_node("n", {"CPU": 4.0, "GPU": 2.0}, free) == Node("n", 4, 2, cpus, gpus)


def test_nodes_that_leave_are_not_counted() -> None:
    nodes = cluster((2, 0), (3, 0))
    elastic = Resources(2, 8)
    assert nodes.reserve("a", elastic) == 5
    assert nodes.room("a", leaving=["n1"]) == 2
    assert nodes.reserve("a", elastic, leaving=["n0"]) == 3
    assert nodes.reserve("a", elastic, leaving=["n0", "n1"]) == 0


def test_a_worker_does_not_span_nodes() -> None:
    assert cluster((3, 0), (3, 0)).reserve("a", Resources(2, 2, 2)) == 2
    assert cluster((3, 0), (3, 0)).reserve("a", Resources(3, 3, 2)) == 0


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


@pytest.mark.integration
@pytest.mark.parametrize("job", [None, {}, {"env_vars": {"A": "b"}}, {"working_dir": "gcs://job.zip"}])
def test_a_job_submitted_to_ray_keeps_its_working_folder(
    job: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray merges both, and refuses to start where they have a setting in common."""
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
from pipeline.config.schema import ClusterConfig
from pipeline.errors import ClusterError

with connect(ClusterConfig()) as cluster:
    one = Resources(1, 1)
    print(cluster.reserve("stage", one), "worker")
    [raylet] = [child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"]
    raylet.kill()
    raylet.wait()
    try:
        cluster.reserve("stage", one)
    except ClusterError as error:
        print(error, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert "1 worker" in done.stdout, done.stderr
    assert "the Ray cluster that was started on this machine is gone" in done.stdout
