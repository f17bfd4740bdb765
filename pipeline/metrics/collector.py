"""What an evaluation gathers besides sums: measures that are no sum, files, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Collector(Protocol):
    """Sees every micro-batch of an evaluation on one rank; rank 0 merges all ranks' and writes what came of it."""

    def add(self, predicted: Any, batch: Any) -> None:
        """Take in one micro-batch and what the task predicted for it, on any device. Weight 0 does not count."""

    def state(self) -> Any:
        """What this rank has gathered, on the CPU and fit to pickle."""

    def merge(self, state: Any) -> None:
        """Add another rank's state."""

    def measures(self) -> dict[str, float]:
        """Measures that are no sum over samples, by name."""

    def write(self, folder: Path, model: str, classes: Sequence[str]) -> None:
        """Add what was gathered of a model to the folder's files: called for one model after the other."""
