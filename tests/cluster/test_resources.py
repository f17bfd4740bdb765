from __future__ import annotations

import pytest

from pipeline.cluster.reservations import Cluster
from pipeline.cluster.resources import Node, Resources, settle
from pipeline.config.cluster import ElasticWorkers, ResourcesConfig


def nodes(*sizes: tuple[int, int]) -> list[Node]:
    return [Node(f"n{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(2, 0)], Resources(1, 2, 1)),
        ([(8, 0)], Resources(1, 8, 1)),
        ([(64, 0), (64, 0)], Resources(1, 16, 8)),
        ([(9, 0)], Resources(1, 4, 2)),
        ([(96, 8)], Resources(1, 8, 12, 1)),
        ([(96, 8), (32, 4), (8, 0)], Resources(1, 12, 8, 1)),  # the head without GPUs gets no rank
        ([(2, 4)], Resources(1, 2, 1, 1)),  # fewer CPUs than GPUs
        ([], Resources(1, 1, 1)),
    ],
)
def test_auto_takes_every_gpu_or_else_the_cpus(sizes: list[tuple[int, int]], expected: Resources) -> None:
    assert settle(ResourcesConfig(), nodes(*sizes)) == expected


def test_what_is_set_stays() -> None:
    machine = nodes((96, 8))
    assert settle(ResourcesConfig(workers=3), machine) == Resources(3, 3, 12, 1)
    assert settle(ResourcesConfig(workers=3), nodes((16, 0))) == Resources(3, 3, 1)
    assert settle(ResourcesConfig(workers=ElasticWorkers(min=2, max=6)), machine) == Resources(2, 6, 12, 1)
    assert settle(ResourcesConfig(gpus_per_worker=0), machine) == Resources(1, 8, 12)
    assert settle(ResourcesConfig(cpus_per_worker=5), machine) == Resources(1, 8, 5, 1)


def test_auto_grows_with_a_cluster_that_nodes_join_up_to_a_share_each() -> None:
    machine = nodes((2, 0))
    assert Cluster("10.0.0.1:6379", lambda: machine).settle(ResourcesConfig(), 64) == Resources(1, 64)
    assert Cluster("this machine", lambda: machine, shared=False).settle(ResourcesConfig(), 64) == Resources(1, 2)
    assert Cluster("this machine", lambda: machine, shared=False).settle(ResourcesConfig(), 1) == Resources(1, 1)
    assert Cluster("here", lambda: machine, shared=False).settle(ResourcesConfig(workers=3), 1) == Resources(3, 3)


def test_what_is_taken_is_said() -> None:
    assert Cluster("here", lambda: nodes((2, 0))).offer(Resources(1, 64)) == "2 workers with 1 CPU each on here"
    assert (
        Cluster("here", lambda: nodes((8, 1))).offer(Resources(1, 4, 8, 1)) == "1 worker with 8 CPUs and 1 GPU on here"
    )


def test_numbers_stay_while_nodes_come_and_go() -> None:
    found = nodes((96, 8))
    cluster = Cluster("10.0.0.1:6379", lambda: found)
    found[:] = nodes((96, 8), (4, 0))
    assert cluster.settle(ResourcesConfig()) == Resources(1, 8, 12, 1)
