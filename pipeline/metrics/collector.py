"""What an evaluation collects besides sums: other measures, files, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pipeline.metrics.bootstrap import Interval


class Collector(Protocol):
    """Sees every micro-batch of an evaluation on one rank; rank 0 merges all ranks' states and writes the result.

    A task returns it in `TaskModule.collectors`. Merging in any order must give what one rank would have collected.
    """

    def add(self, predicted: Any, batch: Any) -> None:
        """Add a micro-batch and the task's predictions for it, on any device. Samples of weight 0 do not count."""

    def state(self) -> Any:
        """What this rank has collected, on the CPU and picklable."""

    def merge(self, state: Any) -> None:
        """Add another rank's state."""

    def measures(self) -> dict[str, float]:
        """Measures that are not sums over samples, by their names in the task's schema; called on rank 0."""

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Append the model's results to the folder's files; called on rank 0, once per model, after `measures`."""


@runtime_checkable
class Resampling(Protocol):
    """A `Collector` that also knows how uncertain measures are, its own or its task's."""

    def intervals(self) -> dict[str, Interval]:
        """The 95 % bootstrap intervals of measures, by name; called on rank 0 at the end of an evaluation."""
