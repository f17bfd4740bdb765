"""Runs an evaluation stage: finished models over a whole data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.metrics.pictures import FOLDER as PICTURES
from pipeline.models.bundle import load_bundle
from pipeline.shards.bad_samples import TEST, quarantine_files
from pipeline.stages.bad_sample_report import manifests, report_bad_samples
from pipeline.stages.context import RunContext
from pipeline.stages.data import check_background, check_classes, check_task, data_read
from pipeline.stages.evaluation_task import evaluated_data, evaluated_task, tracked_measures
from pipeline.stages.folder import Status
from pipeline.stages.measuring import MeasuringRun
from pipeline.stages.resolve import Branch, named_models
from pipeline.stages.sources import resolve_source
from pipeline.stages.types.evaluate import EvaluateStage, evaluate_inputs
from pipeline.tracking.runs import EVALUATION
from pipeline.train.evaluate import NAME, evaluate_worker
from pipeline.train.job import EvaluateJob


class EvaluateStageRun(MeasuringRun):
    """One evaluation stage in one `minivit run`."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        super().__init__(context, branch)
        assert isinstance(branch.stage, EvaluateStage)
        self.stage = branch.stage
        self.data = context.datasets[self.stage.data]
        self.sources = [
            resolve_source(context, self.id, name) for name in named_models(context.config, self.stage.models)
        ]
        described = {source.name: load_bundle(source.path, weights=False) for source in self.sources}
        self.task = evaluated_task(self.stage.task, described, f"stages.{self.id}")
        self.labelled, self.classes = evaluated_data(self.stage.data, self.data, self.task)
        for name, model in described.items():
            check_background(self.stage.data, self.data.config, name, model.preprocess.background)
            if self.classes and not self.task.names_classes:
                where, heads = f"stages.{self.id}", model.spec.num_classes
                check_classes(where, self.stage.data, self.classes, name, heads, model.classes)
        check_task(self.task, self.classes, f"stages.{self.id}")

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
        found = self.measure(status, NAME, evaluate_worker, self._job)
        return found | {"bad_samples": {"test": self._report_bad_samples()}}

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
