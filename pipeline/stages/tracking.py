"""One stage in MLflow. What the store does not accept at once is sent later, from the stage's folder.

Everything is written to the folder first, so a store that fails harms neither the training nor its record.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cluster.usage import FOLDER as SYSTEM
from pipeline.errors import TrackingError
from pipeline.periodic import Periodic
from pipeline.report.files import read_lines
from pipeline.stages.context import RunContext
from pipeline.stages.folder import StageFolder, Status
from pipeline.stages.stage_run import StageRun
from pipeline.tracking import runs as mlflow_status
from pipeline.tracking.forward import Row, RowSender
from pipeline.tracking.models import log_model
from pipeline.tracking.origin import origin_tags
from pipeline.tracking.runs import Tracker
from pipeline.train.ledger import LedgerTail

FLUSH_S = 2.0
BEGIN_WAIT_S = 10.0  # how long a stage waits for its MLflow run before it starts without one
RESUME = "resume"  # the event of a restart
NOT_YET = "not delivered yet"


class StageTracking:
    """The MLflow run of one attempt of a stage or branch."""

    def __init__(self, context: RunContext, stage_id: str, stage: StageRun, status: Status) -> None:
        self.id, self.status = stage_id, status
        self._context, self._stage, self._tracker = context, stage, context.tracker
        self._folder = context.folder.stage(stage_id)
        self._rows = RowTails(self._folder.path)
        self._begun = threading.Lock()
        self._sender: RowSender | None = None  # once the run has begun
        self._refused = False

    @contextmanager
    def following(self) -> Iterator[None]:
        """Within this context a thread begins the run and sends new rows every few seconds.

        Waits up to `BEGIN_WAIT_S` for the run to begin. Never raises errors of the store.
        """
        with Periodic(self._follow, FLUSH_S) as thread:
            thread.called.wait(BEGIN_WAIT_S)
            yield

    def _follow(self) -> None:
        try:
            self._begin().send()
        except TrackingError as error:
            if not self._refused:
                self._say(f"{error}; training continues, and MLflow is brought up to date once it accepts data again")
            self._refused = True
        else:
            if self._refused:
                self._say("MLflow accepts metrics again and is up to date")
            self._refused = False

    def _begin(self) -> RowSender:
        """Begin or resume the run, with the stage's settings and data, unless that is done. Raises `TrackingError`."""
        with self._begun:
            if self._sender is None:
                status = self.status
                status.mlflow_run_id = run_id = self._tracker.start(
                    f"{self._context.config.name}/{self.id}",
                    run_id=status.mlflow_run_id,
                    parent=self._context.parent_run_id,
                    began=status.started,
                    tags=origin_tags(self._context.folder.config),
                )
                self._folder.write_status(status)
                self._stage.track_inputs(run_id)
                self._sender = RowSender(self._tracker, run_id, self._rows.new_rows)
            return self._sender

    def deliver(self) -> None:
        """Send the store the rest of a finished stage, and end its run. Raises `TrackingError`.

        May be called again after a failure: nothing appears twice.
        """
        from pipeline.report.plots import save_plots  # imports matplotlib, which a run that delivers nothing can spare

        self._begin().send()
        status, tracker, run_id = self.status, self._tracker, str(self.status.mlflow_run_id)
        track_restarts(tracker, run_id, self._folder)
        if status.workers:
            tracker.params(run_id, {"world_size": status.workers})
        for path, target in self._stage.artifacts():
            if path.exists():
                tracker.artifact(run_id, path, target)
        with tempfile.TemporaryDirectory() as scratch:
            if save_plots(self._context.folder.path, self.id, Path(scratch)):
                tracker.artifact(run_id, Path(scratch), "plots")
        tracker.metrics(run_id, self._stage.metrics(status.result), at=status.ended)
        if model := self._stage.finished_model(status):
            log_model(tracker, run_id, model)
        if registered := self._stage.register():
            status.result["registered"] = registered
        tracker.end(run_id, mlflow_status.FINISHED, status.ended)
        status.untracked = None
        self._folder.write_status(status)

    def _say(self, message: str) -> None:
        self._context.say(self.id, message)


class RowTails:
    """Follows all files of rows in a stage's folder: its metrics, and the usage of each node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails = {"": LedgerTail(folder)}

    def new_rows(self) -> Iterable[Row]:
        for path in sorted((self._folder / SYSTEM).glob("*.jsonl")):
            self._tails.setdefault(path.name, LedgerTail(path.parent, path.name))
        return [row for tail in self._tails.values() for row in tail.new_rows()]


def track_restarts(tracker: Tracker, run_id: str, folder: StageFolder) -> None:
    """Log what each restart of a training stage cost: the steps done again, and the workers since."""
    for event in read_lines(folder.path / "events.jsonl"):
        if event["event"] == RESUME:
            figures = {f"restart/{name}": float(event[name]) for name in ("steps_lost", "workers")}
            tracker.metrics(run_id, figures, event["step"], event["time"])
