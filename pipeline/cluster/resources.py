"""The resources that stages use on a cluster: as configured, or all it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.cluster import ElasticWorkers, ResourcesConfig
from pipeline.cpus import usable_cpus

DEVICES = Path("/dev")
MOST_CPU_RANKS = 8  # on a node without GPUs: with more, waiting for each other costs more than the extra cores gain


@dataclass(frozen=True)
class Node:
    """A node that is alive and answers. `busy`: held by any job, this one included."""

    id: str
    cpus: int
    gpus: int
    busy_cpus: int = 0
    busy_gpus: int = 0

    def holds(self, resources: Resources) -> int:
        """How many ranks of a stage fit on it."""
        by_gpus = [self.gpus // resources.gpus_per_worker] if resources.gpus_per_worker else []
        return min([self.cpus // resources.cpus_per_worker, *by_gpus])


@dataclass(frozen=True)
class Resources:
    """The resources of a stage, in numbers; each worker is one rank."""

    min_workers: int
    max_workers: int
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0

    def __str__(self) -> str:
        """The resources of one worker."""
        cpus = f"{self.cpus_per_worker} CPU{'s' * (self.cpus_per_worker > 1)}"
        return f"{cpus} and {self.gpus_per_worker} GPU" if self.gpus_per_worker else cpus


def settle(asked: ResourcesConfig, nodes: Sequence[Node], most: int | None = None, *, grows: bool = False) -> Resources:
    """Resolve `auto` to numbers, for a cluster of these nodes.

    With `auto`, every GPU gets a rank, with its share of its node's CPUs. Without GPUs, every CPU gets a rank, up to
    MOST_CPU_RANKS per node, which then have several CPUs each. `workers: auto` starts on what is available, down to
    one worker. Its maximum is what fits now, capped at `most`; if the cluster `grows` and `most` is given, just `most`.
    """
    gpus = int(any(node.gpus for node in nodes)) if asked.gpus_per_worker == "auto" else asked.gpus_per_worker
    cpus = _cpus(asked, nodes, gpus) if asked.cpus_per_worker == "auto" else asked.cpus_per_worker
    if isinstance(asked.workers, ElasticWorkers):
        return Resources(asked.workers.min, asked.workers.max, cpus, gpus)
    if asked.workers != "auto":
        return Resources(asked.workers, asked.workers, cpus, gpus)
    fits = sum(node.holds(Resources(1, 1, cpus, gpus)) for node in nodes)
    workers = fits if most is None else most if grows else min(fits, most)
    return Resources(1, max(workers, 1), cpus, gpus)


def _cpus(asked: ResourcesConfig, nodes: Sequence[Node], gpus: int) -> int:
    if gpus:
        shares = [node.cpus // node.gpus for node in nodes if node.gpus]
    else:
        shares = [-(-node.cpus // MOST_CPU_RANKS) for node in nodes] if asked.workers == "auto" else []
    return max(min(shares, default=1), 1)


def this_machine() -> Node:
    """What a run may use of this machine; asks neither Ray nor CUDA."""
    return Node("", usable_cpus(), len(list(DEVICES.glob("nvidia[0-9]*"))))
