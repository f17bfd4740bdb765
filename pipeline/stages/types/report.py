"""The type `report`: writes the HTML page of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.config.stage import StageConfig
from pipeline.stages.context import RunContext
from pipeline.stages.folder import Status
from pipeline.stages.resolve import Branch, dependencies
from pipeline.stages.stage_run import StageRun
from pipeline.stages.stage_type import StageType


class ReportStage(StageConfig):
    on_workers: ClassVar[bool] = False
    reads_run: ClassVar[bool] = True

    type: Literal["report"]


class ReportStageRun(StageRun):
    def inputs(self) -> dict[str, Any]:
        """The page depends on everything that other stages did."""
        needed = dependencies(self.context.config, self.id)
        statuses = {stage_id: self.context.folder.stage(stage_id).status() for stage_id in needed}
        return {stage_id: [status.digest, status.ended] for stage_id, status in statuses.items() if status}

    def run(self, status: Status) -> dict[str, Any]:
        from pipeline.report.page import write_report

        page = write_report(self.context.folder.path)
        self.context.say(self.id, f"the report is {page}")
        return {"page": str(page)}

    def artifacts(self) -> list[tuple[Path, str | None]]:
        return [(self.context.folder.path / "report.html", None)]


class Reporting(StageType):
    section = ReportStage

    def start(self, context: RunContext, branch: Branch) -> ReportStageRun:
        return ReportStageRun(context, branch)


TYPE = Reporting()
