"""Sends the rows of a stage's files to its MLflow run, each value once.

Ranks do not use MLflow: a slow or unavailable store delays no step, and no rank pays for importing its client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.tracking.names import mlflow_name
from pipeline.tracking.runs import MAX_METRICS_PER_CALL, Tracker

ROW_FIELDS = ("step", "time", "samples")  # in every row, besides its metrics

Row = Mapping[str, float]


class RowSender:
    """Sends new rows to an MLflow run, as often as it is called.

    Skips values for steps that the run already has: steps replayed after a restart or sent by an earlier driver.
    Reads no new rows until the store has accepted all earlier ones.

    Args:
        new_rows: the rows since the last call, in any order of steps.
    """

    def __init__(self, tracker: Tracker, run_id: str, new_rows: Callable[[], Iterable[Row]]) -> None:
        self._tracker, self._run_id, self._new_rows = tracker, run_id, new_rows
        self._known_steps: dict[str, int] = {}
        self._keys: dict[str, str] = {}  # MLflow name -> metric
        self._pending: list[Any] = []

    def send(self) -> None:
        """Send all new rows. Raises `TrackingError` if the store rejects them; call again to retry."""
        if self._pending:
            self._flush()
        self._collect()
        self._flush()

    def _collect(self) -> None:
        from mlflow.entities import Metric

        for row in self._new_rows():
            step, timestamp = int(row["step"]), int(row["time"] * 1000)
            for key, value in row.items():
                if key not in ROW_FIELDS:
                    self._keys[name := mlflow_name(key)] = key
                    self._pending.append(Metric(name, value, timestamp, step))

    def _flush(self) -> None:
        """Send the pending values that the run does not have yet, then drop them."""
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
