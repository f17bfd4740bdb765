"""One branch in one `minivit run`: skipped, or run and recorded on disk and in MLflow."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from pipeline.errors import Interrupted, TrackingError
from pipeline.stages.context import RunContext
from pipeline.stages.deliveries import Deliveries
from pipeline.stages.folder import FAILED, FINISHED, INTERRUPTED, RUNNING, Status
from pipeline.stages.inputs import changes, inputs_digest
from pipeline.stages.progress import clock
from pipeline.stages.resolve import Branch
from pipeline.stages.stage_run import StageRun
from pipeline.stages.stage_type import stage_type
from pipeline.stages.tracking import NOT_YET, StageTracking, track_restarts
from pipeline.tracking import runs as mlflow_status


def skipped(context: RunContext, branch: Branch) -> StageTracking | None:
    """What MLflow may still lack of a branch that has already finished with the same inputs; None for any other."""
    status = context.folder.stage(branch.id).status()
    if status is None or status.state != FINISHED:
        return None
    run = stage_type(branch.stage).start(context, branch)
    if status.digest != inputs_digest(run.inputs()):
        return None
    context.say(branch.id, "skipped: already finished with the same inputs")
    return StageTracking(context, branch.id, run, status)


def run_branch(context: RunContext, branch: Branch, deliveries: Deliveries) -> None:
    """Run a branch unless it has already finished with the same inputs; then MLflow gets what it may still lack."""
    if earlier := skipped(context, branch):
        if earlier.status.untracked:
            deliveries.deliver(earlier)
        return
    folder = context.folder.stage(branch.id)
    run = stage_type(branch.stage).start(context, branch)
    inputs = run.inputs()
    digest = inputs_digest(inputs)
    status = folder.status()
    if status and status.digest != digest:
        _set_aside(context, branch.id, status, inputs)
        status = None
    status = status or Status(RUNNING, branch.stage.type, digest, inputs, started=time.time())
    status.state, status.ended, status.error = RUNNING, None, None
    status.attempts += 1
    status.spans.append([time.time()])
    folder.write_status(status)
    _carry_out(context, run, status, deliveries)


def _carry_out(context: RunContext, run: StageRun, status: Status, deliveries: Deliveries) -> None:
    """Run a stage and record how it ended."""
    tracking = StageTracking(context, run.id, run, status)
    began = time.time()
    try:
        with tracking.following():
            status.result = run.run(status)
    except BaseException as error:
        _record_failure(context, run.id, status, error)
        raise
    status.state, status.ended, status.untracked = FINISHED, time.time(), NOT_YET
    status.spans[-1].append(status.ended)
    run.folder.write_status(status)
    deliveries.deliver(tracking)
    context.say(run.id, f"finished in {clock(time.time() - began)}")


def _record_failure(context: RunContext, branch_id: str, status: Status, error: BaseException) -> None:
    """Record how a stage ended; ignores errors of writing, which may be what failed."""
    folder = context.folder.stage(branch_id)
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
        track_restarts(context.tracker, status.mlflow_run_id, folder)
        outcome = mlflow_status.KILLED if interrupted else mlflow_status.FAILED
        context.tracker.end(status.mlflow_run_id, outcome)


def _set_aside(context: RunContext, branch_id: str, status: Status, inputs: dict[str, Any]) -> None:
    """Set aside the results of a stage whose inputs have changed, and report what has changed."""
    if status.mlflow_run_id and status.state != FINISHED:
        with suppress(TrackingError):
            context.tracker.end(status.mlflow_run_id, mlflow_status.KILLED)
    aside = context.folder.stage(branch_id).set_aside()
    context.say(branch_id, f"runs again, because {changes(status.inputs, inputs)}; the earlier results are in {aside}")
