"""Runs the branches of a pipeline in parallel as the cluster allows, each after those it waits for."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

from pipeline.errors import Interrupted, PipelineError
from pipeline.stages.attempt import run_branch, skipped
from pipeline.stages.context import RunContext
from pipeline.stages.deliveries import Deliveries
from pipeline.stages.resolve import Branch, awaited_ids, stage_branches
from pipeline.stages.tracking import StageTracking
from pipeline.train.job import INTERRUPT, STOP

POLL_S = 0.5


class Execution:
    """Starts each branch once it can start, until all have finished or one has failed."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.stop = context, context.stop
        self.waiting = {branch.id: branch for branch in stage_branches(context.config)}
        self.running: dict[Future[None], Branch] = {}
        self.finished: set[str] = set()
        self.failure: BaseException | None = None
        self.untracked: list[StageTracking] = []  # of skipped branches, of which MLflow lacks something
        self.deliveries = Deliveries(context)

    def skip_finished(self) -> None:
        """Skip the branches that have already finished, unless one that they wait for has not.

        Needs neither a cluster nor MLflow.
        """
        found = True
        while found:
            found = False
            for branch in list(self.waiting.values()):
                with suppress(PipelineError):  # raised again where it ends this branch alone
                    if self._waits_for_none(branch) and (earlier := skipped(self.context, branch)):
                        del self.waiting[branch.id]
                        self.finished.add(branch.id)
                        self.untracked += [earlier] if earlier.status.untracked else []
                        found = True

    def run(self) -> None:
        """Run until every branch has finished, one has failed, or a signal asks to stop."""
        for earlier in self.untracked:
            self.deliveries.deliver(earlier)
        workers = max(len(self.waiting), 1)
        with self.stop, self.deliveries, ThreadPoolExecutor(workers, thread_name_prefix="stage") as pool:
            while self.running or (self.waiting and not self.failure and not self.stop.asked):
                for branch in self._ready():
                    del self.waiting[branch.id]
                    self.running[pool.submit(run_branch, self.context, branch, self.deliveries)] = branch
                self._collect()
                if self.stop.asked:
                    self._pass_on_stop()
            if not (self.waiting or self.failure):
                self.deliveries.complete()
        if self.stop.asked and (self.waiting or self.failure):
            name = self.context.config.name
            raise Interrupted(f"{name}: stopped by {self.stop.asked}; run the same command to resume")
        if self.failure:
            raise self.failure

    def _ready(self) -> list[Branch]:
        """Branches that can start now: nothing has failed, what they wait for has finished, the cluster has room.

        If nothing is running that could free room, a branch starts anyway and waits for nodes itself.
        """
        if self.failure or self.stop.asked:
            return []
        ready: list[Branch] = []
        for branch in self.waiting.values():
            if self._waits_for_none(branch):
                alone = not self.running and not ready
                if self._has_room(branch) or alone:
                    ready.append(branch)
        return ready

    def _waits_for_none(self, branch: Branch) -> bool:
        """Whether everything that a branch waits for has finished."""
        return self.finished.issuperset(awaited_ids(self.context.config, branch.id))

    def _has_room(self, branch: Branch) -> bool:
        """Reserve the workers that a branch needs, if any; returns whether it has them."""
        if not branch.stage.on_workers:
            return True
        return self.context.cluster.reserve(branch.id, self.context.resources(branch.stage)) > 0

    def _collect(self) -> None:
        done, _ = wait(self.running, timeout=POLL_S, return_when=FIRST_COMPLETED)
        self.context.progress.poll()
        for future in done:
            branch = self.running.pop(future)
            if branch.stage.on_workers:
                self.context.cluster.release(branch.id)
            error = future.exception()
            if error is None:
                self.finished.add(branch.id)
            else:
                self.failure = self.failure or error

    def _pass_on_stop(self) -> None:
        """Ask running stages to commit and exit; those that cannot stop halfway run to completion."""
        for branch in self.running.values():
            folder = self.context.folder.stage(branch.id).path
            if folder.is_dir():
                (folder / STOP).write_text(INTERRUPT)
