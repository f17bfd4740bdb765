"""A pretraining or fine-tuning stage: its starting point, its job on the cluster, and its results."""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.checkpoints.manifest import Manifest
from pipeline.checkpoints.selection import STEP, Selection, committed, course, newest_valid
from pipeline.checkpoints.storage import open_storage
from pipeline.config.schema import TrainStage
from pipeline.errors import ConfigError
from pipeline.files import write_json
from pipeline.metrics.outcome import measures_of
from pipeline.metrics.pictures import FOLDER as PICTURES
from pipeline.metrics.schema import VAL, Schema, best
from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.model_costs import count_parameters
from pipeline.models.model_spec import ModelSpec
from pipeline.models.surgery import adapt
from pipeline.periodic import Periodic
from pipeline.shards import bad_samples
from pipeline.shards.urls import is_local, local_path
from pipeline.stages.bad_sample_report import manifests, report_bad_samples
from pipeline.stages.collapse import CollapseWatch
from pipeline.stages.context import RunContext
from pipeline.stages.data import data_read, stage_data
from pipeline.stages.enlarged_views import enlarged_views
from pipeline.stages.folder import StageFolder, Status
from pipeline.stages.inputs import train_inputs
from pipeline.stages.jobs import StageJob
from pipeline.stages.probe_data import knn_job
from pipeline.stages.resolve import Branch, check_teacher, stage_spec
from pipeline.stages.sources import other_normalisation, resolve_source
from pipeline.stages.tables import sides
from pipeline.stages.temperature import TemperatureWatch
from pipeline.stages.tokenizer import stage_tokenizer
from pipeline.stages.tracking import RESUME
from pipeline.stream.source import build_mixture, evaluation_of
from pipeline.tasks.task import own_task, task_of
from pipeline.tracking.models import FinishedModel
from pipeline.tracking.runs import TRAINING, VALIDATION
from pipeline.train.job import TrainJob
from pipeline.train.ledger import LedgerTail, read_metrics
from pipeline.train.saver import ATTEMPT
from pipeline.train.seeds import stage_seed
from pipeline.train.worker import train_worker

WATCH_S = 2.0


class TrainStageRun:
    """One branch of a training stage in one `minivit run`."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        assert isinstance(branch.stage, TrainStage)
        self.context, self.id, self.stage = context, branch.id, with_absolute_paths(branch.stage)
        self.folder: StageFolder = context.folder.stage(branch.id)
        self.where = where = f"stages.{branch.stage_name}"
        self.train, self.val, self.classes = stage_data(context.datasets, self.stage.data, self.stage.task, where)
        self.knn = knn_job(context.datasets, self.stage.eval.knn, f"{where}.eval.knn")
        self.source = resolve_source(context, self.id, self.stage.init_from) if self.stage.init_from else None
        self.teacher = resolve_source(context, self.id, taught_by) if (taught_by := self.stage.task.taught_by) else None
        parent = load_bundle(self.source.path, weights=False).spec if self.source else None
        teacher = load_bundle(self.teacher.path, weights=False) if self.teacher else None
        self.spec: ModelSpec = stage_spec(branch, len(self.classes), parent, teacher.spec if teacher else None)
        if teacher:
            check_teacher(branch, self.spec, self.classes, teacher.spec, teacher.classes)

        workers = context.resources(self.stage).max_workers
        if self.stage.global_batch_size < workers:
            raise ConfigError(
                f"stages.{branch.stage_name}.global_batch_size: {self.stage.global_batch_size} samples cannot be "
                f"shared by {workers} workers; use at least one per worker"
            )

    @cached_property
    def preprocess(self) -> Preprocess:
        """The model's preprocessing; the first call may have to train its tokenizer."""
        dataset, parent = self.train[0].config, None
        if self.source:
            parent = load_bundle(self.source.path, weights=False).preprocess
        return Preprocess(
            dataset.mean,
            dataset.std,
            self.spec.backbone.channels,
            self.spec.backbone.image_size,
            dataset.background,
            evaluation_of(self.train, self.val),
            stage_tokenizer(self.stage.task, self.spec, self.train, parent, self.folder.path, self.where),
        )

    def inputs(self) -> dict[str, Any]:
        return train_inputs(
            self.stage,
            spec=self.spec,
            classes=self.classes,
            seed=self.context.config.seed,
            train=self.train,
            val=self.val,
            init_from=self.source.digest if self.source else None,
            teacher=self.teacher.digest if self.teacher else None,
        )

    def run(self, status: Status) -> dict[str, Any]:
        """Train to the end on whatever workers are available; returns the stage's result."""
        init = self._prepare_start(status)
        if self.teacher:
            status.teacher = self.teacher.name
            self.context.say(self.id, f"learns from {self.teacher.name}")
        for sentence in enlarged_views(self.stage, self.train, self.spec.backbone.image_size):
            self._say("enlarged", sentence)
        status.checkpoints = self.checkpoints if self.stage.checkpoint.storage else self.folder.checkpoints.name
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
        selection = newest_valid(open_storage(self.checkpoints), status.digest)
        self._report_resume(status, selection, workers, again or status.attempts > 1)
        job = self.job(status, init, selection)
        (self.folder.path / ATTEMPT).write_text(job.attempt)
        schema = self.stage.measured
        self.context.progress.watch(self.id, self.folder.path, schema, job.total_steps, first_step(job))
        return job

    @property
    def checkpoints(self) -> str:
        """Where this stage stores its checkpoints: a path or a URL."""
        storage = self.stage.checkpoint.storage
        if storage is None:
            return str(self.folder.checkpoints.absolute())
        place = f"{storage.rstrip('/')}/{self.context.config.name}/{self.id}"
        return str(local_path(place).absolute()) if is_local(place) else place

    def _prepare_start(self, status: Status) -> Path | None:
        """The bundle to start from, adapted to this stage's model; reports and stores the surgery."""
        if self.source is None:
            return None
        status.init_from = self.source.name
        init = self.folder.path / "init"
        if (self.folder.path / "surgery.json").is_file():
            return init
        parent = load_bundle(self.source.path)
        if difference := other_normalisation(parent.preprocess, self.preprocess):
            self.context.say(self.id, difference)
        state, report = adapt(
            parent.state, parent.spec, self.spec, from_classes=parent.classes, to_classes=self.classes
        )
        Bundle(state, self.spec, self.preprocess, self.classes, {"init_from": self.source.name}).save(init)
        write_json(self.folder.path / "surgery.json", report.to_dict())
        (self.folder.path / "surgery.txt").write_text(f"{report}\n")
        self.context.say(self.id, f"starts from {self.source.name}: {report.summary()}")
        return init

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

    def job(self, status: Status, init: Path | None, selection: Selection) -> TrainJob:
        """What the ranks need to start, or to resume from a checkpoint."""
        stage, seed = self.stage, stage_seed(self.context.config.seed, self.id)
        samples_per_epoch = build_mixture(self.train, stage.data, seed).epoch_slots

        def steps(duration: Any) -> int:
            return max(duration.steps(samples_per_epoch, stage.global_batch_size), 1)

        return TrainJob(
            folder=self.folder.path.absolute(),
            stage=self._with_teacher(),
            spec=self.spec,
            preprocess=self.preprocess,
            classes=self.classes,
            train=[source.with_tokenizer(self.preprocess.tokenizer) for source in self.train],
            val=self.val and self.val.with_tokenizer(self.preprocess.tokenizer),
            seed=seed,
            samples_per_epoch=samples_per_epoch,
            total_steps=steps(stage.duration),
            warmup_steps=stage.schedule.warmup.steps(samples_per_epoch, stage.global_batch_size),
            decay_steps=steps(stage.schedule.decay) if stage.schedule.decay else 0,
            checkpoint_steps=steps(stage.checkpoint.every),
            keep_steps=steps(stage.checkpoint.keep_every) if stage.checkpoint.keep_every else None,
            eval_steps=steps(stage.eval.every),
            digest=status.digest,
            run_ids={"pipeline": self.context.parent_run_id, "stage": status.mlflow_run_id or ""},
            attempt=secrets.token_hex(4),
            checkpoints=self.checkpoints,
            init=init.absolute() if init else None,
            resume_from=selection.folder,
            measured=self._measured(selection.manifest),
            knn=self.knn,
        )

    def _with_teacher(self) -> TrainStage:
        """The stage for the ranks: its task refers to the teacher by the path of its bundle."""
        if self.teacher is None:
            return self.stage
        task = self.stage.task.model_copy(update={"teacher": str(self.teacher.path.absolute())})
        return self.stage.model_copy(update={"task": task})

    def _measured(self, resumed: Manifest | None) -> dict[int, dict[str, float]]:
        """Metrics of the checkpoints up to the one resumed from; only `keep_best` needs them."""
        if resumed is None or self.stage.checkpoint.keep_best is None:
            return {}
        found = course(committed(open_storage(self.checkpoints)).values(), resumed.digest, resumed.step)
        return {step: manifest.metrics for step, manifest in found.items()}

    def _result(self, job: TrainJob) -> dict[str, Any]:
        rows = read_metrics(self.folder.path)
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
            "val_samples": self.val.index.num_samples if self.val else None,
            "bad_samples": self._report_bad_samples(),
            "image_size": list(self.spec.backbone.image_size),
            "patch_size": list(self.spec.backbone.patch),
            "variant": self.spec.backbone.variant,
        }

    def _report_bad_samples(self) -> dict[str, Any]:
        """Bad samples of the training and the validation data."""
        train, val = self.folder.path / bad_samples.TRAIN, self.folder.path / bad_samples.VAL
        indexes = [source.index for source in self.train]
        consequence = f"`data.exclude: {train}` leaves them out of other runs"
        told = {"train": report_bad_samples(self.context, self.id, "train", train, indexes, consequence)}
        if self.val:
            consequence = "validation metrics do not count them"
            told["val"] = report_bad_samples(self.context, self.id, "val", val, [self.val.index], consequence)
        if self.knn:
            indexes, probed = [self.knn.train.index, self.knn.test.index], self.folder.path / bad_samples.PROBED
            told["knn"] = report_bad_samples(
                self.context, self.id, "knn", probed, indexes, "val/knn does not count them"
            )
        return told

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
        tracker = self.context.tracker
        tracker.params(run_id, self.stage.model_dump(mode="json", exclude={"model": {"variant"}}))
        backbone = self.spec.backbone
        compared = {
            "variant": backbone.variant,
            "classes": len(self.classes),
            "image_size": sides(backbone.image_size),
            "patch_size": sides(backbone.patch),
            "learning_rate": self.stage.optimizer.lr,
            "parameters": count_parameters(self.spec),
        }
        tracker.params(run_id, compared)
        for source in self.train:
            tracker.dataset(run_id, data_read(source.name, source, TRAINING))
        if self.val:
            tracker.dataset(run_id, data_read(self.val.name, self.val, VALIDATION))

    def register(self) -> None:
        """Only an export registers a model."""
        return


def best_values(schema: Schema, validations: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The best value of each measure over all validations; without those that were never finite."""
    found: dict[str, float] = {}
    for measure in schema.measures:
        values = {number: row.get(measure.name) for number, row in enumerate(validations)}
        chosen = best(values, measure.better)
        if chosen is not None:
            found[measure.name] = validations[chosen][measure.name]
    return found


def finished_model(stage_id: str, folder: StageFolder, status: Status) -> FinishedModel:
    """A training stage's model, as MLflow gets it."""
    described = load_bundle(folder.model, weights=False)
    preprocess, task = described.preprocess, own_task(described)
    return FinishedModel(
        stage=stage_id,
        folder=folder.model.absolute(),
        channels=preprocess.channels,
        image_size=preprocess.image_size,
        digest=status.digest,
        example_prediction=task.example_prediction(described.spec.num_classes),
        predict_options=task.predict_options,
        measures=measures_of({"schema": status.schema, "result": status.result}),
    )


def first_step(job: TrainJob) -> int:
    """The step that a job resumes from; 0 if it starts anew."""
    match = STEP.fullmatch(job.resume_from) if job.resume_from else None
    return int(match[1]) if match else 0


def with_absolute_paths(stage: TrainStage) -> TrainStage:
    """The stage for the ranks, which Ray may start in another working directory."""
    if stage.data.exclude is None:
        return stage
    data = stage.data.model_copy(update={"exclude": str(Path(stage.data.exclude).absolute())})
    return stage.model_copy(update={"data": data})
