"""Runs a pretraining or fine-tuning stage: its starting point, its job on the cluster, and its results."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.checkpoints.selection import STEP, Selection, newest_valid
from pipeline.checkpoints.storage import open_storage
from pipeline.files import write_json
from pipeline.metrics.pictures import FOLDER as PICTURES
from pipeline.metrics.schema import VAL
from pipeline.models.bundle import Bundle, load_bundle
from pipeline.models.model_costs import count_parameters
from pipeline.models.surgery import adapt
from pipeline.periodic import Periodic
from pipeline.shards import bad_samples
from pipeline.stages.bad_sample_report import manifests, report_bad_samples
from pipeline.stages.collapse import CollapseWatch
from pipeline.stages.context import RunContext
from pipeline.stages.data import data_read
from pipeline.stages.enlarged_views import enlarged_views
from pipeline.stages.folder import Status
from pipeline.stages.jobs import StageJob
from pipeline.stages.resolve import Branch
from pipeline.stages.sources import other_normalisation, other_tokenizer
from pipeline.stages.stage_run import StageRun
from pipeline.stages.tables import sides
from pipeline.stages.temperature import TemperatureWatch
from pipeline.stages.tracking import RESUME
from pipeline.stages.types.train.outcome import best_values, finished_model
from pipeline.stages.types.train.setup import TrainSetup
from pipeline.tasks.task import task_of
from pipeline.tracking.models import FinishedModel
from pipeline.tracking.runs import TRAINING, VALIDATION
from pipeline.train.job import TrainJob
from pipeline.train.ledger import LedgerTail, read_metrics
from pipeline.train.saver import ATTEMPT
from pipeline.train.worker import train_worker

WATCH_S = 2.0


class TrainStageRun(StageRun):
    """One branch of a training stage in one `minivit run`."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        super().__init__(context, branch)
        self.setup = TrainSetup(context, branch)
        self.stage = self.setup.stage

    def inputs(self) -> dict[str, Any]:
        return self.setup.inputs()

    def run(self, status: Status) -> dict[str, Any]:
        """Train to the end on whatever workers are available; returns the stage's result."""
        init = self._prepare_start(status)
        if self.setup.teacher:
            status.teacher = self.setup.teacher.name
            self.context.say(self.id, f"learns from {self.setup.teacher.name}")
        for sentence in enlarged_views(self.stage, self.setup.train, self.setup.spec.backbone.image_size):
            self._say("enlarged", sentence)
        status.checkpoints = self.setup.checkpoints if self.stage.checkpoint.storage else self.folder.checkpoints.name
        status.keep_best = self.stage.checkpoint.keep_best
        status.schema = self.stage.measured.to_dict()
        self.folder.write_status(status)
        stage_job: StageJob[TrainJob] = StageJob(
            context=self.context,
            id=self.id,
            folder=self.folder,
            status=status,
            resources=self.context.resources(self.stage),
            worker=train_worker,
            make=lambda workers: self._next_job(status, init, workers, again=stage_job.starts > 0),
            reached=first_step,
            resizable=True,
        )
        try:
            with Periodic(self._watch(), WATCH_S):
                return self._result(stage_job.run())
        finally:
            self.context.progress.unwatch(self.id)

    def _watch(self) -> Callable[[], None]:
        """A function that checks the rows since its last call and reports what a user should know immediately."""
        ledger = LedgerTail(self.folder.path)
        collapse = CollapseWatch(lambda sentence: self._say("collapse", sentence))
        temperature = TemperatureWatch(lambda sentence: self._say("temperature", sentence))

        def watch() -> None:
            for row in ledger.new_rows():
                collapse.look(row)
                temperature.look(row)

        return watch

    def _next_job(self, status: Status, init: Path | None, workers: int, *, again: bool) -> TrainJob:
        """What `workers` ranks need to start, or to resume from the newest valid checkpoint."""
        selection = newest_valid(open_storage(self.setup.checkpoints), status.digest)
        self._report_resume(status, selection, workers, again or status.attempts > 1)
        job = self.setup.job(status, init, selection)
        (self.folder.path / ATTEMPT).write_text(job.attempt)
        schema = self.stage.measured
        self.context.progress.watch(self.id, self.folder.path, schema, job.total_steps, first_step(job))
        return job

    def _prepare_start(self, status: Status) -> Path | None:
        """The bundle to start from, adapted to this stage's model; reports and stores the surgery."""
        setup, source, folder = self.setup, self.setup.source, self.folder.path
        if source is None:
            return None
        status.init_from = source.name
        if (folder / "surgery.json").is_file():
            return folder / "init"
        parent = load_bundle(source.path)
        for differs in (other_normalisation, other_tokenizer):
            if difference := differs(parent.preprocess, setup.preprocess):
                self.context.say(self.id, difference)
        state, report = adapt(
            parent.state, parent.spec, setup.spec, from_classes=parent.classes, to_classes=setup.classes
        )
        bundle = Bundle(state, setup.spec, setup.preprocess, setup.classes, {"init_from": source.name})
        bundle.save(folder / "init")
        write_json(folder / "surgery.json", report.to_dict())
        (folder / "surgery.txt").write_text(f"{report}\n")
        self.context.say(self.id, f"starts from {source.name}: {report.summary()}")
        return folder / "init"

    def _report_resume(self, status: Status, selection: Selection, workers: int, again: bool) -> None:
        for reason in selection.passed_over:
            self._say("passed_over", f"skipped: {reason}")
        reached = max((int(row["step"]) for row in read_metrics(self.folder.path)), default=0)
        manifest = selection.manifest
        if manifest is None:
            if again:
                self._say(
                    "start_again", "no committed checkpoint: starting again from the first step", steps_lost=reached
                )
            return
        kept = f"resumes at step {manifest.step} ({manifest.slots:,} samples) from {selection.folder}; "
        kept += "kept: weights, optimiser"
        kept += ", average" if self.stage.ema else ""
        kept += ", teacher" if task_of(self.stage.task).follows else ""
        kept += ", position in the data"
        now = (workers, self.stage.engine.zero_stage)
        if (manifest.world_size, manifest.zero_stage) != now:
            kept += (
                f"; re-split: {manifest.world_size} workers with ZeRO-{manifest.zero_stage} to {now[0]} with "
                f"ZeRO-{now[1]}"
            )
        steps_lost = max(reached - manifest.step, 0)
        kept += f"; {steps_lost} steps are repeated" if steps_lost else ""
        details = {"step": manifest.step, "steps_lost": steps_lost, "workers": workers}
        self._say(RESUME, kept, **details, workers_before=manifest.world_size)

    def _say(self, event: str, message: str, **details: int) -> None:
        self.folder.event(event, message, **details)
        self.context.say(self.id, message)

    def _result(self, job: TrainJob) -> dict[str, Any]:
        rows, setup = read_metrics(self.folder.path), self.setup
        validations = {row["step"]: found for row in rows if (found := self.stage.measured.of(row, VAL))}
        speeds = [row["speed/images_per_s"] for row in rows if "speed/images_per_s" in row]
        waits = [row["speed/data_wait_share"] for row in rows if "speed/data_wait_share" in row]
        return {
            "steps": job.total_steps,
            "samples": job.total_steps * self.stage.global_batch_size,
            "images_per_s": statistics.median(speeds) if speeds else None,
            "data_wait_share": statistics.median(waits) if waits else None,
            "start": validations.get(0),
            "measures": validations[max(validations)] if validations else {},
            "best": best_values(self.stage.measured, list(validations.values())),
            "val_samples": setup.val.index.num_samples if setup.val else None,
            "bad_samples": self._report_bad_samples(),
            "image_size": list(setup.spec.backbone.image_size),
            "patch_size": list(setup.spec.backbone.patch),
            "variant": setup.spec.backbone.variant,
        }

    def _report_bad_samples(self) -> dict[str, Any]:
        """Bad samples of the training data, the validation data and those of the online kNN."""
        setup, folder = self.setup, self.folder.path
        consequence = f"`data.exclude: {folder / bad_samples.TRAIN}` leaves them out of other runs"
        read = {"train": ([source.index for source in setup.train], bad_samples.TRAIN, consequence)}
        if setup.val:
            read["val"] = [setup.val.index], bad_samples.VAL, "validation metrics do not count them"
        if setup.knn:
            indexes = [setup.knn.train.index, setup.knn.test.index]
            read["knn"] = indexes, bad_samples.PROBED, "val/knn does not count them"
        return {
            what: report_bad_samples(self.context, self.id, what, folder / name, indexes, consequence)
            for what, (indexes, name, consequence) in read.items()
        }

    def artifacts(self) -> list[tuple[Path, str | None]]:
        """The artifacts for MLflow besides the model: (file or folder, artifact folder)."""
        names = ("surgery.json", "surgery.txt", "metrics.jsonl", "events.jsonl")
        files = [(self.folder.path / name, None) for name in names]
        bad = manifests(self.folder.path, bad_samples.TRAIN, bad_samples.VAL, bad_samples.PROBED)
        pictures = [(folder, PICTURES)] if (folder := self.folder.path / PICTURES).is_dir() else []
        return [*files, *bad, *pictures]

    def metrics(self, result: dict[str, Any]) -> dict[str, float]:
        """The best of each validation measure; the others are in the rows of rank 0."""
        return {f"best/{name}": value for name, value in result["best"].items()}

    def finished_model(self, status: Status) -> FinishedModel:
        return finished_model(self.id, self.folder, status)

    def track_inputs(self, run_id: str) -> None:
        """Log the settings, and the parameters by which runs are compared, which all training stages name alike."""
        tracker, setup = self.context.tracker, self.setup
        tracker.params(run_id, self.stage.model_dump(mode="json", exclude={"model": {"variant"}}))
        backbone = setup.spec.backbone
        compared = {
            "variant": backbone.variant,
            "classes": len(setup.classes),
            "image_size": sides(backbone.image_size),
            "patch_size": sides(backbone.patch),
            "learning_rate": self.stage.optimizer.lr,
            "parameters": count_parameters(setup.spec),
        }
        tracker.params(run_id, compared)
        for source in setup.train:
            tracker.dataset(run_id, data_read(source.name, source, TRAINING))
        if setup.val:
            tracker.dataset(run_id, data_read(setup.val.name, setup.val, VALIDATION))


def first_step(job: TrainJob) -> int:
    """The step that a job resumes from; 0 if it starts anew."""
    match = STEP.fullmatch(job.resume_from) if job.resume_from else None
    return int(match[1]) if match else 0
