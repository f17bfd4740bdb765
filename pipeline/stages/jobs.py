"""Runs a stage's job to its end through lost workers, leaving nodes and joining nodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.cluster.launch import launch
from pipeline.cluster.resources import Resources
from pipeline.errors import ClusterError, Interrupted, WorkersLate, WorkersLost
from pipeline.stages.context import RunContext
from pipeline.stages.folder import StageFolder, Status
from pipeline.train.job import RESIZE, STOP, RankContext, WorkersChange

LOOK_FOR_ROOM_S = 2.0
GROW_AFTER_S = 10.0  # how long room for more workers must last: a short-lived node is not worth a restart

Job = TypeVar("Job")


@dataclass
class StageJob(Generic[Job]):
    """One stage's job on the cluster, restarted whenever its workers change.

    Args:
        make: builds the job for a number of workers, from the stage's current state.
        reached: a number that grows with each commit; restarts count as consecutive only while it stays the same.
        resizable: whether the job commits and exits on request, so that it can grow.
    """

    context: RunContext
    id: str
    folder: StageFolder
    status: Status
    resources: Resources
    worker: Callable[[Job, RankContext], None]
    make: Callable[[int], Job]
    reached: Callable[[Job], int] = lambda job: 0
    resizable: bool = False
    leaving: tuple[str, ...] = ()  # ids of nodes about to be taken away
    lost_at: int = -1
    losses: int = 0
    starts: int = field(default=0, init=False)
    late_since: float | None = field(default=None, init=False)

    def run(self) -> Job:
        """Run the job to its end; returns it as last started.

        Raises what a rank raised, `Interrupted` on a request to stop, and `ClusterError` if workers are lost
        repeatedly without a new checkpoint, or lost nodes are not replaced.
        """
        while True:
            workers = self._workers()
            self.status.workers = workers
            job = self.make(workers)
            try:
                self._start(job, workers)
                return job
            except WorkersLate as late:
                self._wait_again(late)
                continue
            except WorkersChange as change:
                self.leaving = tuple({*self.leaving, *change.leaving})
                self._say("resize", f"committed and stopped, because {change}", workers_before=workers)
            except WorkersLost as lost:
                self._count_loss(lost, self.reached(job), workers)
            self.late_since = None

    def _workers(self) -> int:
        """As many workers as there is room for; waits until the stage's minimum fits."""
        cluster = self.context.cluster
        due = time.monotonic() + self.context.config.cluster.wait_s
        announced = False
        while not (workers := cluster.reserve(self.id, self.resources, self.leaving)):
            if self.context.stop.asked:
                raise Interrupted(f"{self.id}: stopped while waiting for nodes")
            if time.monotonic() > due:
                raise ClusterError(
                    f"stages.{self.id}: there was no room for {self.resources.min_workers} workers within "
                    f"{self.context.config.cluster.wait_s:.0f} s (cluster.wait_s){cluster.others()}; bring nodes back "
                    "or lower cluster.workers, then run the same command again to resume from the last committed "
                    "checkpoint"
                )
            if not announced:
                announced = True
                self._say("wait", f"waiting for room for {self.resources.min_workers} workers{cluster.others()}")
            time.sleep(LOOK_FOR_ROOM_S)
        return workers

    def _start(self, job: Job, workers: int) -> None:
        if self.context.stop.asked:
            raise Interrupted(f"{self.id}: stopped before it started")
        (self.folder.path / STOP).unlink(missing_ok=True)
        self.starts += 1
        name = f"{self.context.config.name}-{self.id.replace('/', '-')}-{time.time_ns():x}"
        with self._growing(workers):
            launch(
                self.worker,
                job,
                self.resources,
                workers=workers,
                name=name,
                folder=self.folder.path.absolute(),
                stall_timeout_s=self.context.config.cluster.stall_timeout_s,
                env=self.context.config.cluster.env,
                sample_every_s=self.context.config.tracking.system_metrics_every_s,
            )

    def _wait_again(self, late: WorkersLate) -> None:
        """Report the first failure to start workers; raise `ClusterError` once retries exceed `cluster.wait_s`."""
        others, wait_s = self.context.cluster.others(), self.context.config.cluster.wait_s
        if self.late_since is None:
            self.late_since = time.monotonic()
            self._say("wait", f"{late}{others}; retrying for up to {wait_s:.0f} s")
        elif time.monotonic() - self.late_since > wait_s:
            raise ClusterError(
                f"stages.{self.id}: {late}, and retries failed for {wait_s:.0f} s (cluster.wait_s){others}; free the "
                "nodes, or lower cluster.workers, then run the same command again to resume from the last committed "
                "checkpoint"
            ) from late

    def _count_loss(self, lost: WorkersLost, reached: int, workers: int) -> None:
        self.losses = self.losses + 1 if reached == self.lost_at else 1
        self.lost_at = reached
        limit = self.context.config.cluster.max_restarts
        message = f"workers were lost ({lost}); restart {self.losses} of at most {limit} without a new checkpoint"
        if self.losses > limit:
            raise ClusterError(
                f"stages.{self.id}: workers were lost {self.losses} times without a new checkpoint in between, but "
                f"cluster.max_restarts allows {limit}; the last time: {lost}; logs are in "
                f"{self.folder.path / 'logs'}; run the same command again to resume from the last checkpoint"
            ) from lost
        self._say("restart", message, workers_before=workers)

    def _say(self, event: str, message: str, **details: int) -> None:
        self.folder.event(event, message, **details)
        self.context.say(self.id, message)

    @contextmanager
    def _growing(self, workers: int) -> Iterator[None]:
        """While the job has fewer workers than the stage allows, watch for room for more, then ask it to exit."""
        if not self.resizable or workers == self.resources.max_workers:
            yield
            return
        ended = threading.Event()
        watch = threading.Thread(target=self._watch_room, args=(workers, ended), name="room", daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()

    def _watch_room(self, workers: int, ended: threading.Event) -> None:
        since: float | None = None
        while not ended.wait(LOOK_FOR_ROOM_S):
            try:
                room = self.context.cluster.room(self.id, self.leaving)
            except ClusterError:
                return  # the cluster is gone, and the job with it
            if room <= workers:
                since = None
                continue
            since = since or time.monotonic()
            wish = self.folder.path / STOP
            if time.monotonic() - since >= GROW_AFTER_S and not wish.exists():
                wish.write_text(RESIZE)
