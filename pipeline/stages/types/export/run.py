"""Runs an export stage: writes a finished model in the formats that downstream code reads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import TrackingError
from pipeline.export import export
from pipeline.metrics.outcome import schema_of
from pipeline.models.bundle import load_bundle
from pipeline.stages.checkpoint_model import weights_bundle
from pipeline.stages.context import RunContext
from pipeline.stages.folder import Status
from pipeline.stages.resolve import Branch
from pipeline.stages.sources import resolve_source
from pipeline.stages.stage_run import StageRun
from pipeline.stages.story import story_of
from pipeline.stages.types.export import ExportStage, export_inputs
from pipeline.stages.types.train.outcome import finished_model
from pipeline.tracking.models import register


class ExportStageRun(StageRun):
    """One export stage in one `minivit run`."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        super().__init__(context, branch)
        assert isinstance(branch.stage, ExportStage)
        self.stage = branch.stage
        self.source = resolve_source(context, self.id, self.stage.model)

    def inputs(self) -> dict[str, Any]:
        return export_inputs(self.stage, model=self.source.digest)

    def run(self, status: Status) -> dict[str, Any]:
        """Write every format to `export/<format>`; returns the path of each."""
        status.init_from = self.source.name
        weights = self.stage.weights
        if weights is None:
            bundle = load_bundle(self.source.path)
        else:
            bundle = weights_bundle(self.context.folder.stage(self.source.name).path, weights)
            self.context.say(
                self.id, f"{self.source.name}: uses the weights {weights} of {bundle.provenance['checkpoint']}"
            )
        story = story_of(self.source.path, self.stage.license, finished=weights is None)
        folders = {name: self.folder.path / "export" / name for name in self.stage.formats}
        written = {name: export(name, bundle, out, self.stage.graph, story) for name, out in folders.items()}
        for name, path in written.items():
            self.context.say(self.id, f"{self.source.name} as {name}: {path}")
        return {"formats": {name: str(path) for name, path in written.items()}, "registered": None}

    def register(self) -> str | None:
        """Register the model that its training stage logged as a version in MLflow; returns NAME/VERSION.

        Raises `TrackingError` if MLflow does not have that stage yet.
        """
        if (asked := self.stage.register_as) is None:
            return None
        folder = self.context.folder.stage(self.source.name)
        status = folder.status()
        assert status is not None
        if status.mlflow_run_id is None:
            raise TrackingError(
                f"stages.{self.id}.register_as: MLflow has no run of {self.source.name} yet, so {asked.name} gets no "
                "new version"
            )
        model, selected = finished_model(self.source.name, folder, status), schema_of(asdict(status)).selected
        found = register(
            self.context.tracker, asked.name, status.mlflow_run_id, asked.alias, model, selected.name, selected.better
        )
        outcome = f"is now its {asked.alias}"
        if found.incomparable:
            outcome = (
                f"cannot be compared with its {asked.alias} ({found.incomparable}); "
                f"if it is better, set the alias {asked.alias} to version {found.version} in MLflow"
            )
        elif not found.has_alias:
            outcome = f"is not better by {selected.words} than its {asked.alias}"
        self.context.say(self.id, f"{self.source.name} as {asked.name} version {found.version}, which {outcome}")
        return f"{asked.name}/{found.version}"

    def artifacts(self) -> list[tuple[Path, str | None]]:
        return [(self.folder.path / "export", "export")]

    def track_inputs(self, run_id: str) -> None:
        self.context.tracker.params(run_id, {"model": self.source.name, "formats": list(self.stage.formats)})
