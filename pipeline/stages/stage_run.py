"""One branch in one `minivit run`: its inputs, its work and what MLflow gets of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.stages.context import RunContext
from pipeline.stages.folder import Status
from pipeline.stages.resolve import Branch

if TYPE_CHECKING:
    from pipeline.tracking.models import FinishedModel


class StageRun(ABC):
    """What every type of stage does; constructed once all its dependencies have finished.

    All in the driver, each branch in a thread of its own: what ranks do is a job that `run` gives to the cluster.
    """

    def __init__(self, context: RunContext, branch: Branch) -> None:
        self.context, self.id = context, branch.id
        self.folder = context.folder.stage(branch.id)

    @abstractmethod
    def inputs(self) -> dict[str, Any]:
        """Everything that determines its result, as plain data; a finished branch is skipped while this stays equal."""

    @abstractmethod
    def run(self, status: Status) -> dict[str, Any]:
        """Do the work; returns the result, as plain data for the status file."""

    def track_inputs(self, run_id: str) -> None:
        """Send its settings and data."""
        return

    def artifacts(self) -> list[tuple[Path, str | None]]:
        """The artifacts to log: (file or folder, artifact folder)."""
        return []

    def metrics(self, result: dict[str, Any]) -> dict[str, float]:
        """The figures of its result."""
        return {}

    def finished_model(self, status: Status) -> FinishedModel | None:
        """The model that it has trained, if any."""
        return None

    def register(self) -> str | None:
        """Register a model; returns NAME/VERSION, or None if it registers none."""
        return None
