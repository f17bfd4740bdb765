"""Which workers of a cluster each stage of a pipeline holds, and how many more fit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable

from pipeline.cluster.resources import Node, Resources, settle
from pipeline.config.cluster import ResourcesConfig
from pipeline.errors import ClusterError

FREED_WITHIN_S = 3.0  # how long Ray may count what a job of ours held after it has ended
# By default, SLURM gives a job one CPU of each node, whatever its GPUs.
MORE_ON_SLURM = "ask SLURM for more: --exclusive for whole nodes, or --cpus-per-gpu, --cpus-per-task or --nodes"


class Cluster:
    """A connected cluster, and how many of its workers each stage of this pipeline holds. Thread-safe."""

    def __init__(self, address: str, list_nodes: Callable[[], list[Node]], *, shared: bool = True) -> None:
        """`shared`: whether nodes may join, and other jobs may run there."""
        self.address, self._list_nodes, self._shared = address, list_nodes, shared
        self._at_first = tuple(list_nodes())
        self._held: dict[str, tuple[int, Resources]] = {}
        self._lock = threading.Lock()

    def settle(self, asked: ResourcesConfig, most: int | None = None) -> Resources:
        """The requested resources in numbers, fixed for the life of this driver; see `resources.settle`."""
        return settle(asked, self._at_first, most, grows=self._shared)

    def require(self, resources: Resources, where: str, setting: str = "cluster.workers") -> None:
        """Raise `ClusterError` unless this cluster fits a job's minimum number of workers at once.

        `where` names the job in the message, `setting` what the user lowers.
        """
        nodes = self._list_nodes()
        fits, needed = sum(node.holds(resources) for node in nodes), resources.min_workers
        if fits >= needed:
            return
        if resources.gpus_per_worker and not any(node.gpus for node in nodes):
            raise ClusterError(no_gpu(where, self.address))
        offered = ", ".join(f"{node.cpus} CPUs and {node.gpus} GPUs" for node in nodes) or "no nodes"
        on_slurm = "SLURM_JOB_ID" in os.environ
        raise ClusterError(
            f"{where}: {needed} workers with {resources} each do not fit on the cluster at {self.address}, which has "
            f"room for {fits} ({offered}); lower {setting} or {MORE_ON_SLURM if on_slurm else 'add nodes'}"
        )

    def offer(self, resources: Resources) -> str:
        """How many workers of a stage fit on the nodes, and what other jobs hold there, as a message."""
        workers = min(sum(node.holds(resources) for node in self._list_nodes()), resources.max_workers)
        taken = f"{workers} worker{'s' * (workers > 1)} with {resources}{' each' * (workers > 1)} on {self.address}"
        return taken + self.others()

    def idle_gpus(self, asked: Iterable[Resources]) -> str | None:
        """A sentence if this cluster has GPUs but no stage uses one; otherwise None."""
        return idle_gpus(sum(node.gpus for node in self._list_nodes()), self.address, asked)

    def reserve(self, holder: str, resources: Resources, leaving: Collection[str] = ()) -> int:
        """Hold as many workers as fit, up to the stage's maximum, on nodes not `leaving`; returns their number.

        Returns 0 and holds nothing if fewer than its minimum fit. Releases a holder's earlier reservation.
        """
        with self._lock:
            self._held.pop(holder, None)
            workers = self._room(resources, leaving, patience_s=FREED_WITHIN_S)
            if workers:
                self._held[holder] = workers, resources
            return workers

    def release(self, holder: str) -> None:
        with self._lock:
            self._held.pop(holder, None)

    def room(self, holder: str, leaving: Collection[str] = ()) -> int:
        """Workers that a holder would get if it reserved again."""
        with self._lock:
            return self._room(self._held[holder][1], leaving, again=holder)

    def held(self, holder: str) -> int:
        """Workers that a holder has."""
        return self._held[holder][0]

    def others(self) -> str:
        """What other jobs hold now, to end a message with; empty if nothing."""
        with self._lock:
            nodes = self._list_nodes()
            cpus, gpus = self._taken_by_others(nodes)
        kinds = ((gpus, sum(node.gpus for node in nodes), "GPUs"), (cpus, sum(node.cpus for node in nodes), "CPUs"))
        held = [f"{taken} of {total} {kind}" for taken, total, kind in kinds if taken]
        return f"; other jobs hold {' and '.join(held)}" if held else ""

    def _room(
        self, resources: Resources, leaving: Collection[str], *, again: str | None = None, patience_s: float = 0.0
    ) -> int:
        """Workers that fit beside all other holders; `again` is one that would give up what it has.

        Waits for up to `patience_s` if other jobs seem to be in the way.
        """
        due = time.monotonic() + patience_s
        while True:
            nodes = [node for node in self._list_nodes() if node.id not in leaving]
            (our_cpus, our_gpus), (their_cpus, their_gpus) = self._ours(again), self._taken_by_others(nodes)
            free_cpus = sum(node.cpus for node in nodes) - our_cpus - their_cpus
            free_gpus = sum(node.gpus for node in nodes) - our_gpus - their_gpus
            free = Node("", max(free_cpus, 0), max(free_gpus, 0))
            fits = min(sum(node.holds(resources) for node in nodes), free.holds(resources), resources.max_workers)
            if fits == resources.max_workers or not (their_cpus or their_gpus) or time.monotonic() >= due:
                return fits if fits >= resources.min_workers else 0
            time.sleep(0.2)

    def _ours(self, without: str | None = None) -> tuple[int, int]:
        """CPUs and GPUs reserved here."""
        held = [reserved for holder, reserved in self._held.items() if holder != without]
        cpus = sum(workers * resources.cpus_per_worker for workers, resources in held)
        return cpus, sum(workers * resources.gpus_per_worker for workers, resources in held)

    def _taken_by_others(self, nodes: Collection[Node]) -> tuple[int, int]:
        """CPUs and GPUs of these nodes that are held, but not reserved here."""
        if not self._shared:
            return 0, 0
        our_cpus, our_gpus = self._ours()
        busy_cpus, busy_gpus = sum(node.busy_cpus for node in nodes), sum(node.busy_gpus for node in nodes)
        return max(busy_cpus - our_cpus, 0), max(busy_gpus - our_gpus, 0)


def no_gpu(where: str, place: str) -> str:
    """The sentence for a job that asks for a GPU per worker where there is none."""
    return f"{where}: needs a GPU per worker, but {place} has none; set gpus_per_worker to 0, or add nodes with GPUs"


def idle_gpus(gpus: int, where: str, asked: Iterable[Resources]) -> str | None:
    """A sentence if there are GPUs but no stage uses one, so that nobody trains on CPUs by accident."""
    if not gpus or any(resources.gpus_per_worker for resources in asked):
        return None
    count = "GPU stays" if gpus == 1 else "GPUs stay"
    return (
        f"{gpus} {count} idle on {where}, because no stage uses one; set cluster.gpus_per_worker=auto to train on GPUs"
    )
