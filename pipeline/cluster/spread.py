"""Runs the same task on many shards over the nodes of a Ray cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pipeline.cluster.environment import shared_with_ranks, take_environment
from pipeline.cluster.session import connect
from pipeline.config.schema import ClusterConfig
from pipeline.errors import ClusterError, PipelineError
from pipeline.shards.parallel import track

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 16  # items of a Ray task at most
AHEAD = 4  # tasks submitted for each one that runs
RETRIES = 3  # of a task whose node was lost


def map_on_cluster(
    task: Callable[[T], R], items: Sequence[T], *, label: str, workers: int | None = None, unit: str = "shards"
) -> Iterator[R]:
    """`map_shards` on the CPUs of the Ray cluster at RAY_ADDRESS, of which at most `workers` are used; in order.

    Nodes must have the same files and environment. Raises ClusterError if the cluster does not answer or
    loses a task's node RETRIES times, and what `task` raises.
    """
    with connect(ClusterConfig()) as cluster:
        import ray

        cpus = int(ray.cluster_resources().get("CPU", 1))
        size = min(CHUNK, max(len(items) // (AHEAD * cpus), 1))
        chunks = [items[first : first + size] for first in range(0, len(items), size)]
        results = (result for done in _run(task, chunks, workers or AHEAD * cpus) for result in done)
        yield from track(results, len(items), f"{label} on {cluster.address}", unit)


def _run(task: Callable[[T], R], chunks: Sequence[Sequence[T]], at_once: int) -> Iterator[list[R]]:
    """The results of each chunk, in order; `at_once` of them are submitted to Ray at a time."""
    import ray

    remote: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_apply)
    work = ray.put((task, shared_with_ranks(os.environ)))
    waiting: deque[Any] = deque()
    coming = iter(chunks)
    while True:
        while len(waiting) < at_once and (chunk := next(coming, None)) is not None:
            waiting.append(remote.remote(work, chunk))
        if not waiting:
            return
        try:
            yield ray.get(waiting.popleft())
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, PipelineError) else error) from None
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"a node of the cluster was lost {RETRIES + 1} times while it read a shard ({error}); run the same "
                "command again"
            ) from None


def _apply(work: tuple[Callable[[T], R], dict[str, str]], chunk: Sequence[T]) -> list[R]:
    task, environment = work
    take_environment(environment)
    return [task(item) for item in chunk]
