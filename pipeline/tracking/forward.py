"""Forwards a stage's metrics file to its MLflow run: the driver sends what rank 0 has written, each value once.

Ranks do not use MLflow: a slow or unavailable store delays no step, and no rank pays for importing its client.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from pipeline.errors import TrackingError
from pipeline.tracking.names import mlflow_name
from pipeline.tracking.runs import Tracker

logger = logging.getLogger(__name__)

FLUSH_S = 2.0
MAX_METRICS_PER_CALL = 1000
ROW_FIELDS = ("step", "time", "samples")  # in every row, besides its metrics

Row = Mapping[str, float]


class MetricsForwarder:
    """While entered, sends new rows to an MLflow run every few seconds, from a thread.

    Does not resend a value for a step that the run already has: steps replayed after a restart, or sent by an earlier
    driver, leave no second row. Exiting raises `TrackingError` if the store has not accepted all values, unless another
    exception is under way.

    Args:
        new_rows: the rows since the last call, in any order of steps.
    """

    def __init__(self, tracker: Tracker, run_id: str, new_rows: Callable[[], Iterable[Row]]) -> None:
        self._tracker, self._run_id, self._new_rows = tracker, run_id, new_rows
        self._known_steps: dict[str, int] = {}
        self._keys: dict[str, str] = {}  # MLflow name -> metric
        self._pending: list[Any] = []
        self._refusal: Exception | None = None  # the last one, while values are pending
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)

    def __enter__(self) -> MetricsForwarder:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if self._pending and error is None:
            raise TrackingError(
                f"{self._refusal}; {len(self._pending)} metric values are in metrics.jsonl only"
            ) from self._refusal

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(FLUSH_S)
            try:
                self._collect()
                self._send()
            except Exception as error:  # whatever it is, the next attempt may succeed
                self._refusal = error
                logger.warning("MLflow did not take %d metric values, will try again: %s", len(self._pending), error)

    def _collect(self) -> None:
        from mlflow.entities import Metric

        for row in self._new_rows():
            step, timestamp = int(row["step"]), int(row["time"] * 1000)
            for key, value in row.items():
                if key not in ROW_FIELDS:
                    self._keys[name := mlflow_name(key)] = key
                    self._pending.append(Metric(name, value, timestamp, step))

    def _send(self) -> None:
        """Send and drop the pending values that the run lacks. Raises `TrackingError` if the store rejects them."""
        new = {metric.key for metric in self._pending} - self._known_steps.keys()
        self._tracker.names(self._run_id, [self._keys[name] for name in new])
        for name in new:
            self._known_steps[name] = self._tracker.last_step(self._run_id, name)
        self._pending = [metric for metric in self._pending if metric.step > self._known_steps[metric.key]]
        while self._pending:
            batch = self._pending[:MAX_METRICS_PER_CALL]
            self._tracker.batch(self._run_id, batch)
            self._known_steps |= {metric.key: max(metric.step, self._known_steps[metric.key]) for metric in batch}
            del self._pending[:MAX_METRICS_PER_CALL]
