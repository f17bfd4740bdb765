from __future__ import annotations

import pytest

from pipeline.cluster.reservations import Cluster
from pipeline.cluster.resources import Node, Resources, settle
from pipeline.config.cluster import ElasticWorkers, ResourcesConfig
from pipeline.errors import ClusterError


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
def test_a_stage_must_fit_as_a_whole(
    workers: int | ElasticWorkers, cpus: int, gpus: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ResourcesConfig(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    resources = settle(asked, [])
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
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


def test_a_gpu_that_no_node_has_is_told_of() -> None:
    expected = r"^stages\.pretrain: needs a GPU per worker, but this machine has none; set gpus_per_worker to 0, or add"
    with pytest.raises(ClusterError, match=expected):
        cluster((4, 0), (4, 0)).require(Resources(1, 1, 1, 1), "stages.pretrain")


def test_a_slurm_job_with_too_few_cpus_is_told_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    expected = (
        r"8 workers with 12 CPUs and 1 GPU each do not fit on the cluster at this machine, which has room for 0 "
        r"\(1 CPUs and 8 GPUs\); lower cluster\.workers or ask SLURM for more: --exclusive for whole nodes, or "
        r"--cpus-per-gpu, --cpus-per-task or --nodes$"
    )
    with pytest.raises(ClusterError, match=expected):
        cluster((1, 8)).require(Resources(8, 8, 12, 1), "stages.pretrain")


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
    sentence = "idle on this machine, because no stage uses one; set cluster.gpus_per_worker=auto to train on GPUs"
    assert told == (f"{count} {sentence}" if count else None)


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
    monkeypatch.setattr("pipeline.cluster.reservations.FREED_WITHIN_S", 0.3)
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
