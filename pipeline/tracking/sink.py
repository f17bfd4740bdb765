"""Metrics of rank 0 on their way to MLflow, sent behind the training loop's back."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import TrackingError
from pipeline.tracking.runs import client_for

logger = logging.getLogger(__name__)

FLUSH_S = 2.0
MAX_METRICS_PER_CALL = 1000
END = None


@dataclass
class MLflowSink:
    """Logs metrics of one run from one process.

    It travels to rank 0 as plain data and opens the store at the first metric. A step that the run already has is not
    logged again, so that steps replayed after a restart leave no second row.
    """

    uri: str
    run_id: str
    _queue: queue.Queue | None = field(default=None, init=False, repr=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)
    _unsent: int = field(default=0, init=False, repr=False)

    def log(self, step: int, metrics: dict[str, float], time_s: float | None = None) -> None:
        """Hand over metrics, of now or of a time in Unix seconds; returns at once."""
        if self._queue is None:
            self._queue = queue.Queue()
            self._thread = threading.Thread(target=self._send_all, args=(self._queue,), name="mlflow", daemon=True)
            self._thread.start()
        self._queue.put((step, int((time_s or time.time()) * 1000), metrics))

    def close(self) -> None:
        """Send what is left and wait for it; `TrackingError` if the store no longer takes it."""
        if self._queue is None or self._thread is None:
            return
        self._queue.put(END)
        self._thread.join()
        self._queue = self._thread = None
        if self._unsent:
            raise TrackingError(
                f"tracking.uri: the MLflow store at {self.uri} stopped answering; {self._unsent} metric values are in "
                "metrics.jsonl only; start it and run the same command again"
            )

    def _send_all(self, rows: queue.Queue) -> None:
        """Body of the sending thread: collect for `FLUSH_S`, send, and keep what the store did not take."""
        from mlflow.exceptions import MlflowException

        client: Any = None
        known_steps: dict[str, int] = {}
        pending: list[Any] = []
        ended = False
        while not ended:
            ended = self._collect(rows, pending)
            try:
                client = client or client_for(self.uri)
                self._send(client, pending, known_steps)
            except (MlflowException, TrackingError) as error:
                logger.warning("MLflow did not take %d metric values, will try again: %s", len(pending), error)
            self._unsent = len(pending)

    def _collect(self, rows: queue.Queue, pending: list[Any]) -> bool:
        """Move rows of about `FLUSH_S` into `pending`; true when the last one has come."""
        from mlflow.entities import Metric

        due = time.monotonic() + FLUSH_S
        while (left := due - time.monotonic()) > 0:
            try:
                row = rows.get(timeout=left)
            except queue.Empty:
                break
            if row is END:
                return True
            step, timestamp, metrics = row
            pending.extend(Metric(key, value, timestamp, step) for key, value in metrics.items())
        return False

    def _send(self, client: Any, pending: list[Any], known_steps: dict[str, int]) -> None:
        """Send what is new to the run and forget it. Raises MLflow's error when the store does not take it."""
        for key in {metric.key for metric in pending} - known_steps.keys():
            known_steps[key] = max((old.step for old in client.get_metric_history(self.run_id, key)), default=-1)
        pending[:] = [metric for metric in pending if metric.step > known_steps[metric.key]]
        while pending:
            client.log_batch(self.run_id, metrics=pending[:MAX_METRICS_PER_CALL])
            del pending[:MAX_METRICS_PER_CALL]
