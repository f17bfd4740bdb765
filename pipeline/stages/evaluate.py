"""An evaluation stage: runs finished models over a whole data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config.schema import EvaluateStage
from pipeline.metrics.outcome import schema_of
from pipeline.metrics.pictures import FOLDER as PICTURES
from pipeline.models.bundle import load_bundle
from pipeline.shards.bad_samples import TEST, quarantine_files
from pipeline.stages.bad_sample_report import manifests, report_bad_samples
from pipeline.stages.context import RunContext
from pipeline.stages.data import check_background, check_classes, data_read
from pipeline.stages.evaluation_task import describe_measures, evaluated_data, evaluated_task, tracked_measures
from pipeline.stages.folder import Status
from pipeline.stages.inputs import evaluate_inputs
from pipeline.stages.jobs import StageJob
from pipeline.stages.resolve import Branch, reference_ids
from pipeline.stages.sources import SourceModel, resolve_source
from pipeline.tracking.runs import EVALUATION
from pipeline.train.evaluate import NAME, evaluate_worker
from pipeline.train.job import EvaluateJob


class EvaluateStageRun:
    """One evaluation stage in one `minivit run`."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        assert isinstance(branch.stage, EvaluateStage)
        self.context, self.id, self.stage = context, branch.id, branch.stage
        self.folder = context.folder.stage(branch.id)
        self.data = context.datasets[self.stage.data]
        self.sources = [source for reference in self.stage.models for source in self._sources(reference)]
        described = {source.name: load_bundle(source.path, weights=False) for source in self.sources}
        self.task = evaluated_task(self.stage.task, described, f"stages.{self.id}")
        self.labelled, self.classes = evaluated_data(self.stage.data, self.data, self.task)
        for name, model in described.items():
            check_background(self.stage.data, self.data.config, name, model.preprocess.background)
            if self.classes and not self.task.names_classes:
                where, heads = f"stages.{self.id}", model.spec.num_classes
                check_classes(where, self.stage.data, self.classes, name, heads, model.classes)

    def _sources(self, reference: str) -> list[SourceModel]:
        """All branches of a stage, or the single model named."""
        names = reference_ids(self.context.config, reference) or [reference]
        return [resolve_source(self.context, self.id, name) for name in names]

    def inputs(self) -> dict[str, Any]:
        models = {source.name: source.digest for source in self.sources}
        return evaluate_inputs(self.stage, task=self.task, models=models, data=self.labelled, classes=self.classes)

    def _job(self) -> EvaluateJob:
        """What the ranks need to start from the first sample."""
        for file in quarantine_files(self.folder.path / TEST):  # left by an unfinished attempt
            file.unlink()
        return EvaluateJob(
            folder=self.folder.path.absolute(),
            models={source.name: source.path.absolute() for source in self.sources},
            task=self.task,
            data=self.labelled,
            classes=self.classes,
            batch_size=self.stage.batch_size,
            loader_workers=self.stage.loader_workers,
            precision=self.stage.precision,
        )

    def run(self, status: Status) -> dict[str, Any]:
        """Evaluate all models on the cluster; returns the measures of each."""
        with self.context.progress.following(self.id, self.folder.path):
            StageJob(
                context=self.context,
                id=self.id,
                folder=self.folder,
                status=status,
                resources=self.context.resources(self.stage),
                worker=evaluate_worker,
                make=lambda workers: self._job(),
            ).run()
        evaluation = json.loads((self.folder.path / NAME).read_text())
        schema = schema_of(evaluation)
        measures = {model: schema.of(found) for model, found in evaluation["models"].items()}
        for model, found in evaluation["models"].items():
            self.context.say(
                self.id, f"{model}: {', '.join(describe_measures(schema, found))}; {found['samples']:,} samples"
            )
        return {
            "measures": measures,
            "samples": evaluation["samples"],
            "bad_samples": {"test": self._report_bad_samples()},
        }

    def _report_bad_samples(self) -> dict[str, Any]:
        """Bad samples of the data set, under its own name."""
        manifest, consequence = self.folder.path / TEST, "the measures do not count them"
        return report_bad_samples(self.context, self.id, self.stage.data, manifest, [self.data.index], consequence)

    def artifacts(self) -> list[tuple[Path, str | None]]:
        """Everything the evaluation has written."""
        written = self.folder.path
        names = [NAME, *(path.name for path in sorted(written.iterdir()) if path.suffix in (".csv", ".npz"))]
        files: list[tuple[Path, str | None]] = [(written / name, None) for name in names]
        files += [(written / PICTURES, PICTURES)] if (written / PICTURES).is_dir() else []
        return [*files, *manifests(self.folder.path, TEST)]

    def metrics(self, result: dict[str, Any]) -> dict[str, float]:
        return tracked_measures(result["measures"]) | {"test/bad_samples": result["bad_samples"]["test"]["bad"]}

    def track_inputs(self, run_id: str) -> None:
        tracker = self.context.tracker
        tracker.params(run_id, {"models": [source.name for source in self.sources], "data": self.stage.data})
        tracker.dataset(run_id, data_read(self.stage.data, self.data, EVALUATION))

    def finished_model(self, status: Status) -> None:
        """An evaluation trains no model."""
        return

    def register(self) -> None:
        """Only an export registers a model."""
        return
