"""What MLflow gets of finished stages, meanwhile or, if the store fails, later."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from pipeline.errors import TrackingError
from pipeline.stages.context import RunContext
from pipeline.stages.tracking import StageTracking

RETRY_S = 2.0  # between attempts to deliver to MLflow


class Deliveries:
    """Sends the rest of finished stages in a thread of its own, and keeps those whose record is incomplete.

    The next stage need not wait for plots and models. Use it as a context manager, which ends once all have been sent.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.undelivered: dict[str, StageTracking] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deliveries")  # in order: an export needs its model's
        self._sent: list[Future[None]] = []

    def __enter__(self) -> Deliveries:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown()

    def deliver(self, tracking: StageTracking) -> None:
        """Send MLflow the rest of a finished stage; if that fails, `complete` retries."""
        self._sent.append(self._thread.submit(self._send, tracking))

    def wait(self) -> None:
        """Wait until the stages so far have been sent, or have failed to be."""
        for sent in self._sent:
            sent.result()

    def _send(self, tracking: StageTracking) -> None:
        try:
            tracking.deliver()
        except TrackingError as error:
            tracking.status.untracked = str(error)
            self.context.folder.stage(tracking.id).write_status(tracking.status)
            self.undelivered[tracking.id] = tracking
            self.context.say(tracking.id, f"{error}; the stage's remaining records are kept and will be sent later")

    def complete(self) -> None:
        """Send MLflow the rest of all finished stages; waits for a store that does not answer.

        Raises `TrackingError` if some of it is still undelivered after `tracking.wait_s`, or if the store refuses it
        although it answers before and after the attempt.
        """
        self.wait()
        due, answered = time.monotonic() + self.context.config.tracking.wait_s, False
        while self.undelivered:
            waiting, self.undelivered = self.undelivered, {}
            for tracking in waiting.values():
                if not self.undelivered:  # else the store has just failed, and later stages may need earlier ones
                    self._send(tracking)
                else:
                    self.undelivered[tracking.id] = tracking
            if not self.undelivered:
                self.context.say(self.context.config.name, f"MLflow is now up to date with {', '.join(waiting)}")
            elif self.context.stop.asked or time.monotonic() > due:
                raise self._undelivered()
            else:
                before, answered = answered, self.context.tracker.answers()
                if before and answered:  # if only now, it may have been starting during the attempt
                    raise self._undelivered()
                if not answered:
                    time.sleep(RETRY_S)

    def _undelivered(self) -> TrackingError:
        why = next(iter(self.undelivered.values())).status.untracked
        return TrackingError(
            f"{why}; every stage has finished, but MLflow's record of {', '.join(self.undelivered)} is incomplete; the "
            f"rest is kept in {self.context.folder.path}: run the same command again to send it, without retraining"
        )
