"""`minivit run`: executes the graph of stages in order and skips those that are done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from pipeline.cluster.environment import unset
from pipeline.cluster.session import connect
from pipeline.config.load import dump_config
from pipeline.config.schema import (
    EvaluateStage,
    ExportStage,
    PipelineConfig,
    ProbeStage,
    ReportStage,
    TrainStage,
)
from pipeline.credentials import shown
from pipeline.errors import CheckpointError, Interrupted, TrackingError
from pipeline.report.tables import installed_versions
from pipeline.stages.context import RunContext, find_datasets, make_datasets, tracking_store
from pipeline.stages.evaluate import EvaluateStageRun
from pipeline.stages.export import ExportStageRun
from pipeline.stages.folder import FAILED, FINISHED, INTERRUPTED, RUNNING, RunFolder, Status
from pipeline.stages.inputs import changes, inputs_digest
from pipeline.stages.preflight import check_storages, preflight
from pipeline.stages.probe import ProbeStageRun
from pipeline.stages.progress import Progress, clock
from pipeline.stages.replay import replay
from pipeline.stages.report import ReportStageRun
from pipeline.stages.resolve import Branch, dependencies, evaluation_ids, on_workers, stage_branches
from pipeline.stages.stop import StopRequest
from pipeline.stages.tracking import NOT_YET, StageTracking, Tracked, track_restarts
from pipeline.stages.train import TrainStageRun
from pipeline.tracking import runs as mlflow_status
from pipeline.tracking.origin import config_tags, origin_tags
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import describe_store
from pipeline.train.job import INTERRUPT, STOP

POLL_S = 0.5
RETRY_S = 2.0  # between attempts to deliver to MLflow


class StageRun(Tracked, Protocol):
    """The interface of every type of stage; constructed once all its dependencies have finished."""

    def inputs(self) -> dict[str, Any]: ...

    def run(self, status: Status) -> dict[str, Any]: ...


STAGE_RUNS: dict[type, Callable[[RunContext, Branch], StageRun]] = {
    TrainStage: TrainStageRun,
    EvaluateStage: EvaluateStageRun,
    ProbeStage: ProbeStageRun,
    ExportStage: ExportStageRun,
    ReportStage: ReportStageRun,
}


def run_pipeline(config: PipelineConfig) -> None:
    """Run or resume a pipeline; returns when every stage has finished, raises `PipelineError` otherwise.

    With `train.replay_slots`, runs only that batch again and leaves the run as it is.
    """
    datasets, to_make = find_datasets(config)
    findings = preflight(config, datasets)
    findings.faults += [problem for name, problem in to_make.items() if not config.datasets[name].make]
    findings.faults += unset(config.cluster.env, os.environ, "cluster.env")
    findings.refuse()
    folder = RunFolder(Path(config.runs_dir) / config.name)
    with ExitStack() as stack:
        stack.enter_context(folder.locked())
        require_same_pipeline(config, folder)
        progress = stack.enter_context(Progress())
        if not config.train.replay_slots:
            check_storages(config)
        if to_make:
            datasets |= make_datasets(config, to_make)
            findings = preflight(config, datasets)
            findings.refuse()
        for warning in findings.warnings:
            progress.say(f"warning: {warning}")
        tracker = Tracker(tracking_store(config))
        close_killed_runs(folder, tracker)
        if config.train.replay_slots:
            cluster = stack.enter_context(connect(config.cluster))
            context = RunContext(config, folder, cluster, tracker, "", progress, StopRequest(progress), datasets)
            replay(context, config.train.replay_slots)
            return
        (folder.path / "pipeline.yaml").write_text(dump_config(without_password(config)))
        progress.say(f"{config.name}: in {folder.path}; {describe_store(tracker.store)}")
        parent = stack.enter_context(parent_run(tracker, folder, config.name, progress.say))
        cluster = stack.enter_context(connect(config.cluster))
        context = RunContext(config, folder, cluster, tracker, parent, progress, StopRequest(progress), datasets)
        take_resources(context)
        Execution(context).run()


def take_resources(context: RunContext) -> None:
    """Check that every stage fits on the cluster; report its resources and idle GPUs. Raises `ClusterError`."""
    taken = {name: context.resources(stage) for name, stage in on_workers(context.config).items()}
    for name, resources in taken.items():
        context.cluster.require(resources, f"stages.{name}")
    for resources in dict.fromkeys(taken.values()):
        context.say(context.config.name, context.cluster.offer(resources))
    if idle := context.cluster.idle_gpus(taken.values()):
        context.say(context.config.name, idle)


def without_password(config: PipelineConfig) -> PipelineConfig:
    """The config, safe to store and show: removes the password that a variable may have put into the tracking URI."""
    if config.tracking.uri is None:
        return config
    tracking = config.tracking.model_copy(update={"uri": shown(config.tracking.uri)})
    return config.model_copy(update={"tracking": tracking})


def close_killed_runs(folder: RunFolder, tracker: Tracker) -> None:
    """Mark stages still recorded as running, which were killed with their driver, on disk and in MLflow."""
    for stage_id in folder.stage_ids():
        status = folder.stage(stage_id).status()
        if status and status.state == RUNNING:
            status.state, status.error = INTERRUPTED, "its driver was killed"
            folder.stage(stage_id).write_status(status)
            if status.mlflow_run_id:
                tracker.end(status.mlflow_run_id, mlflow_status.KILLED)


@contextmanager
def parent_run(tracker: Tracker, folder: RunFolder, name: str, say: Callable[[str], None]) -> Iterator[str]:
    """Begin or resume the MLflow run of the whole pipeline and record how it ends. Yields its id."""
    record = folder.record()
    earlier = record.get("mlflow_run_id")
    tags = origin_tags() | config_tags(folder.path / "pipeline.yaml")
    run_id = tracker.start(name, run_id=earlier, tags=tags)
    if earlier not in (None, run_id):
        lost = f"run {earlier}, tracked in {record.get('tracking_uri')} so far"
        say(f"{name}: this MLflow store does not have {lost}; the new run {run_id} replaces it")
    known = {"mlflow_run_id": run_id, **tracker.store.record, "environment": installed_versions()}
    folder.write_record({"created": time.time(), **record, **known})
    tracker.artifact(run_id, folder.path / "pipeline.yaml")
    try:
        yield run_id
    except BaseException as error:
        with suppress(Exception):  # the store may be what failed
            tracker.end(run_id, mlflow_status.KILLED if isinstance(error, Interrupted) else mlflow_status.FAILED)
        raise
    tracker.end(run_id, mlflow_status.FINISHED)


def require_same_pipeline(config: PipelineConfig, folder: RunFolder) -> None:
    """Raise `CheckpointError` if the folder holds a stage that this pipeline does not have."""
    types = {branch.id: branch.stage.type for branch in stage_branches(config)}
    for stage_id in folder.stage_ids():
        status = folder.stage(stage_id).status()
        if status and types.get(stage_id) != status.type:
            raise CheckpointError(
                f"{folder.path} belongs to another config: it has the {status.type} stage {stage_id!r}, which this "
                "one does not have; give this run another name with name=..., or remove that stage's folder"
            )


class Execution:
    """Runs branches in parallel as the cluster allows, each after those it depends on."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.waiting = {branch.id: branch for branch in stage_branches(context.config)}
        self.running: dict[Future[None], Branch] = {}
        self.finished: set[str] = set()
        self.failure: BaseException | None = None
        self.undelivered: dict[str, StageTracking] = {}  # finished stages whose record in MLflow is incomplete
        self.stop = context.stop

    def run(self) -> None:
        """Run until every branch has finished, one has failed, or a signal asks to stop."""
        with self.stop, ThreadPoolExecutor(max_workers=max(len(self.waiting), 1), thread_name_prefix="stage") as pool:
            while self.running or (self.waiting and not self.failure and not self.stop.asked):
                for branch in self._ready():
                    del self.waiting[branch.id]
                    self.running[pool.submit(self._run_branch, branch)] = branch
                self._collect()
                if self.stop.asked:
                    self._pass_on_stop()
            if not (self.waiting or self.failure):
                self._deliver_rest()
        if self.stop.asked and (self.waiting or self.failure):
            name = self.context.config.name
            raise Interrupted(f"{name}: stopped by {self.stop.asked}; run the same command to resume")
        if self.failure:
            raise self.failure

    def _ready(self) -> list[Branch]:
        """Branches that can start now: nothing has failed, their dependencies have finished, the cluster has room.

        If nothing is running that could free room, a branch starts anyway and waits for nodes itself.
        """
        if self.failure or self.stop.asked:
            return []
        ready: list[Branch] = []
        for branch in self.waiting.values():
            awaited = [*dependencies(self.context.config, branch.id), *evaluation_ids(self.context.config, branch.id)]
            if self.finished.issuperset(awaited):
                alone = not self.running and not ready
                if self._has_room(branch) or alone:
                    ready.append(branch)
        return ready

    def _has_room(self, branch: Branch) -> bool:
        """Reserve the workers that a branch needs, if any; returns whether it has them."""
        if isinstance(branch.stage, (ExportStage, ReportStage)):
            return True
        return self.context.cluster.reserve(branch.id, self.context.resources(branch.stage)) > 0

    def _collect(self) -> None:
        done, _ = wait(self.running, timeout=POLL_S, return_when=FIRST_COMPLETED)
        self.context.progress.poll()
        for future in done:
            branch = self.running.pop(future)
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

    def _run_branch(self, branch: Branch) -> None:
        """Run a branch unless it has already finished with the same inputs."""
        context, folder = self.context, self.context.folder.stage(branch.id)
        stage_run = STAGE_RUNS[type(branch.stage)](context, branch)
        inputs = stage_run.inputs()
        digest = inputs_digest(inputs)
        status = folder.status()
        if status and status.digest == digest and status.state == FINISHED:
            context.say(branch.id, "skipped: already finished with the same inputs")
            if status.untracked:
                self._deliver(StageTracking(context, branch.id, stage_run, status))
            return
        if status and status.digest != digest:
            self._set_aside(branch, status, inputs)
            status = None
        status = status or Status(RUNNING, branch.stage.type, digest, inputs, started=time.time())
        status.state, status.ended, status.error = RUNNING, None, None
        status.attempts += 1
        status.spans.append([time.time()])
        folder.write_status(status)
        self._carry_out(branch, stage_run, status)

    def _carry_out(self, branch: Branch, stage_run: StageRun, status: Status) -> None:
        """Run a stage and record how it ended, on disk and in MLflow."""
        context, folder = self.context, self.context.folder.stage(branch.id)
        tracking = StageTracking(context, branch.id, stage_run, status)
        began = time.time()
        try:
            with tracking.following():
                status.result = stage_run.run(status)
        except BaseException as error:
            self._record_failure(branch, status, error)
            raise
        status.state, status.ended, status.untracked = FINISHED, time.time(), NOT_YET
        status.spans[-1].append(status.ended)
        folder.write_status(status)
        self._deliver(tracking)
        context.say(branch.id, f"finished in {clock(time.time() - began)}")

    def _deliver(self, tracking: StageTracking) -> None:
        """Send MLflow the rest of a finished stage; if that fails, `_deliver_rest` retries."""
        try:
            tracking.deliver()
        except TrackingError as error:
            tracking.status.untracked = str(error)
            self.context.folder.stage(tracking.id).write_status(tracking.status)
            self.undelivered[tracking.id] = tracking
            self.context.say(tracking.id, f"{error}; the stage's remaining records are kept and will be sent later")

    def _deliver_rest(self) -> None:
        """Send MLflow the rest of all finished stages; waits for a store that does not answer.

        Raises `TrackingError` if some of it is still undelivered after `tracking.wait_s`.
        """
        due = time.monotonic() + self.context.config.tracking.wait_s
        while self.undelivered:
            waiting, self.undelivered = self.undelivered, {}
            for tracking in waiting.values():
                if not self.undelivered:  # else the store has just failed, and later stages may need earlier ones
                    self._deliver(tracking)
                else:
                    self.undelivered[tracking.id] = tracking
            if not self.undelivered:
                self.context.say(self.context.config.name, f"MLflow is now up to date with {', '.join(waiting)}")
            elif self.stop.asked or time.monotonic() > due or self.context.tracker.answers():
                raise self._undelivered()
            else:
                time.sleep(RETRY_S)

    def _undelivered(self) -> TrackingError:
        why = next(iter(self.undelivered.values())).status.untracked
        return TrackingError(
            f"{why}; every stage has finished, but MLflow's record of {', '.join(self.undelivered)} is incomplete; the "
            f"rest is kept in {self.context.folder.path}: run the same command again to send it, without retraining"
        )

    def _record_failure(self, branch: Branch, status: Status, error: BaseException) -> None:
        """Record on disk and in MLflow how a stage ended; ignores write errors, which may be what failed."""
        folder = self.context.folder.stage(branch.id)
        interrupted = isinstance(error, Interrupted)
        status.state, status.ended, status.error = INTERRUPTED if interrupted else FAILED, time.time(), str(error)
        status.spans[-1].append(status.ended)
        with suppress(OSError):
            folder.event(status.state, str(error))
        with suppress(OSError):
            folder.write_status(status)
        with suppress(TrackingError, OSError):
            if status.mlflow_run_id is None:  # the store has not answered since the stage began
                return
            track_restarts(self.context.tracker, status.mlflow_run_id, folder)
            outcome = mlflow_status.KILLED if interrupted else mlflow_status.FAILED
            self.context.tracker.end(status.mlflow_run_id, outcome)

    def _set_aside(self, branch: Branch, status: Status, inputs: dict[str, Any]) -> None:
        """Set aside the results of a stage whose inputs have changed, and report what has changed."""
        folder = self.context.folder.stage(branch.id)
        if status.mlflow_run_id and status.state != FINISHED:
            with suppress(TrackingError):
                self.context.tracker.end(status.mlflow_run_id, mlflow_status.KILLED)
        aside = folder.set_aside()
        self.context.say(
            branch.id, f"runs again, because {changes(status.inputs, inputs)}; the earlier results are in {aside}"
        )
