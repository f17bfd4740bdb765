"""Runs a probe stage: measures the quality of finished models' frozen features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config.probe import BASELINES
from pipeline.shards.bad_samples import PROBED, TRAIN
from pipeline.stages.bad_sample_report import manifests, report_bad_samples
from pipeline.stages.context import RunContext
from pipeline.stages.data import data_read
from pipeline.stages.evaluation_task import tracked_measures
from pipeline.stages.folder import Status
from pipeline.stages.measuring import MeasuringRun
from pipeline.stages.probe_data import probe_sources
from pipeline.stages.resolve import Branch, named_models
from pipeline.stages.sources import SourceModel, resolve_source
from pipeline.stages.types.probe import ProbeStage, probe_inputs
from pipeline.tracking.runs import EVALUATION, TRAINING
from pipeline.train.job import ProbedModel, ProbeJob
from pipeline.train.probe import NAME, part_of, probe_worker


class ProbeStageRun(MeasuringRun):
    """One probe stage in one `minivit run`."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        super().__init__(context, branch)
        assert isinstance(branch.stage, ProbeStage)
        self.stage = branch.stage
        names = self.stage.data.train, self.stage.data.test
        datasets = context.datasets[names[0]], context.datasets[names[1]]
        self.data = probe_sources(names, datasets, f"stages.{self.id}.data")
        self.sources = {
            reference: self._sources(reference) for reference in self.stage.models if reference not in BASELINES
        }

    def _sources(self, reference: str) -> list[SourceModel]:
        """All branches of a stage, or the single model named."""
        return [resolve_source(self.context, self.id, name) for name in named_models(self.context.config, [reference])]

    @property
    def first(self) -> SourceModel:
        """The model whose shape and images the baselines share."""
        return next(iter(self.sources.values()))[0]

    def inputs(self) -> dict[str, Any]:
        digests = {source.name: source.digest for sources in self.sources.values() for source in sources}
        digests |= {reference: self.first.digest for reference in self.stage.models if reference in BASELINES}
        return probe_inputs(
            self.stage,
            models=digests,
            train=self.data.train,
            test=self.data.test,
            classes=self.data.classes,
            seed=self.context.config.seed,
        )

    def models(self) -> dict[str, ProbedModel]:
        """The models by name, in the stage's order."""
        found: dict[str, ProbedModel] = {}
        for reference in self.stage.models:
            if reference in BASELINES:
                found[reference] = ProbedModel(self.first.path.absolute(), reference)
            else:
                found |= {source.name: ProbedModel(source.path.absolute()) for source in self.sources[reference]}
        return found

    def _job(self) -> ProbeJob:
        """What the ranks need to measure the models that no earlier attempt has measured."""
        job = ProbeJob(
            folder=self.folder.path.absolute(),
            models=self.models(),
            train=self.data.train,
            test=self.data.test,
            classes=self.data.classes,
            methods=self.stage.methods,
            features=self.stage.features,
            seed=self.context.config.seed,
            batch_size=self.stage.batch_size,
            loader_workers=self.stage.loader_workers,
            precision=self.stage.precision,
        )
        files = {name: part_of(job, name) for name in job.models}
        job.done.update({name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()})
        if job.done:
            self.context.say(self.id, f"already measured: {', '.join(job.done)}")
        return job

    def run(self, status: Status) -> dict[str, Any]:
        """Probe all models on the cluster; returns the measures of each."""
        found = self.measure(status, NAME, probe_worker, self._job, reached=lambda job: len(job.done))
        return found | {"bad_samples": self._report_bad_samples()}

    def _report_bad_samples(self) -> dict[str, Any]:
        """Bad samples of both data sets, each under its own name."""
        consequence = "they have no features"
        return {
            what: report_bad_samples(
                self.context, self.id, source.name, self.folder.path / name, [source.index], consequence
            )
            for what, source, name in (("train", self.data.train, TRAIN), ("test", self.data.test, PROBED))
        }

    def artifacts(self) -> list[tuple[Path, str | None]]:
        return [(self.folder.path / NAME, None), *manifests(self.folder.path, TRAIN, PROBED)]

    def metrics(self, result: dict[str, Any]) -> dict[str, float]:
        bad = {f"{what}/bad_samples": float(found["bad"]) for what, found in result["bad_samples"].items()}
        return tracked_measures(result["measures"]) | bad

    def track_inputs(self, run_id: str) -> None:
        tracker, stage = self.context.tracker, self.stage
        tracker.params(run_id, stage.model_dump(mode="json", exclude={"resources"}))
        for context, source in ((TRAINING, self.data.train), (EVALUATION, self.data.test)):
            tracker.dataset(run_id, data_read(source.name, source, context))
