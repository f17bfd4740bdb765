"""A report stage: the HTML page of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.report.page import write_report
from pipeline.stages.context import RunContext
from pipeline.stages.folder import Status
from pipeline.stages.resolve import Branch, dependencies


class ReportStageRun:
    """One report stage in one `minivit run`."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        self.context, self.id = context, branch.id
        self.folder = context.folder.stage(branch.id)

    def inputs(self) -> dict[str, Any]:
        """The page depends on everything that other stages did."""
        needed = dependencies(self.context.config, self.id)
        statuses = {stage_id: self.context.folder.stage(stage_id).status() for stage_id in needed}
        return {stage_id: [status.digest, status.ended] for stage_id, status in statuses.items() if status}

    def run(self, status: Status) -> dict[str, Any]:
        page = write_report(self.context.folder.path)
        self.context.say(self.id, f"the report is {page}")
        return {"page": str(page)}

    def artifacts(self) -> list[tuple[Path, str | None]]:
        return [(self.context.folder.path / "report.html", None)]

    def metrics(self, result: dict[str, Any]) -> dict[str, float]:
        return {}

    def track_inputs(self, run_id: str) -> None:
        """A page has no settings of its own."""

    def finished_model(self, status: Status) -> None:
        """A report trains no model."""
        return

    def register(self) -> None:
        """Only an export registers a model."""
        return
