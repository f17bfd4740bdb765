"""A pretraining or fine-tuning stage: where it starts, its job on the cluster, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import secrets
import statistics
from pathlib import Path
from typing import Any

from pipeline.checkpoints.store import Selection, newest_valid
from pipeline.cluster.launch import WorkersLost, launch
from pipeline.config.schema import TrainStage
from pipeline.errors import CheckpointError, ConfigError
from pipeline.models.bundle import Preprocess, load_bundle, save_bundle
from pipeline.models.spec import ViTSpec
from pipeline.models.surgery import adapt
from pipeline.stages.context import RunContext, class_names
from pipeline.stages.folder import StageFolder, Status, write_json
from pipeline.stages.resolve import Branch, stage_spec
from pipeline.stages.sources import resolve_source
from pipeline.tracking.sink import MLflowSink
from pipeline.train.commit import ATTEMPT
from pipeline.train.job import STOP, Dataset, TrainJob
from pipeline.train.ledger import read_metrics
from pipeline.train.worker import train_worker

# Settings that change how fast or how safely a stage runs, but not what it computes.
NOT_INPUTS: dict[str, Any] = {
    "resources": True,
    "checkpoint": True,
    "eval": True,
    "log_every": True,
    "micro_batch_size": True,
    "init_from": True,
    "engine": {"zero_stage"},
    "data": {"loader_workers"},
    "model": {"variant"},
}


class TrainStageRun:
    """One branch of a training stage in one `minivit run`."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        assert isinstance(branch.stage, TrainStage)
        self.context, self.id, self.stage = context, branch.id, with_absolute_paths(branch.stage)
        self.folder: StageFolder = context.folder.stage(branch.id)
        self.train: Dataset = context.datasets[self.stage.data.train]
        self.val: Dataset | None = context.datasets[self.stage.data.val] if self.stage.data.val else None
        self.classes = class_names(self.stage.data.train, self.train)
        self.source = resolve_source(context, self.id, self.stage.init_from) if self.stage.init_from else None
        parent = load_bundle(self.source.path).spec if self.source else None
        self.spec: ViTSpec = stage_spec(branch, len(self.classes), parent)
        dataset = self.train.config
        self.preprocess = Preprocess(dataset.mean, dataset.std, self.spec.channels, self.spec.image_size)

        workers = context.config.resources(self.stage).workers
        if self.stage.global_batch_size < workers:
            raise ConfigError(
                f"stages.{branch.stage_name}.global_batch_size: {self.stage.global_batch_size} samples cannot be "
                f"shared by {workers} workers; take at least one each"
            )

    def inputs(self) -> dict[str, Any]:
        """All that determines what this stage computes."""
        return {
            "settings": self.stage.model_dump(mode="json", exclude=NOT_INPUTS),
            "spec": self.spec.to_dict(),
            "preprocess": {"mean": list(self.preprocess.mean), "std": list(self.preprocess.std)},
            "classes": self.classes,
            "seed": self.context.config.seed,
            "train": self.train.index.digest,
            "val": self.val.index.digest if self.val else None,
            "init_from": self.source.digest if self.source else None,
        }

    def run(self, status: Status) -> dict[str, Any]:
        """Train to the end, over as many restarts as are allowed; returns the stage's result."""
        init = self._prepare_start(status)
        restarts = 0
        while True:
            selection = newest_valid(self.folder.checkpoints, status.digest)
            self._say_what_is_kept(selection, again=restarts > 0 or status.attempts > 1)
            step = selection.manifest.step if selection.manifest else 0
            job = self._job(status, init, selection)
            self.context.progress.watch(self.id, self.folder.path, job.total_steps, step)
            try:
                self._launch(job)
                break
            except WorkersLost as lost:
                restarts += 1
                self._after_loss(lost, restarts)
            finally:
                self.context.progress.unwatch(self.id)
        return self._result(job)

    def _launch(self, job: TrainJob) -> None:
        (self.folder.path / ATTEMPT).write_text(job.attempt)
        (self.folder.path / STOP).unlink(missing_ok=True)
        launch(
            train_worker,
            job,
            self.context.config.resources(self.stage),
            name=f"{self.context.config.name}-{self.id.replace('/', '-')}-{job.attempt}",
            folder=self.folder.path.absolute(),
        )

    def _after_loss(self, lost: WorkersLost, restarts: int) -> None:
        limit = self.context.config.cluster.max_restarts
        message = f"workers were lost ({lost}); restart {restarts} of at most {limit}"
        self.folder.event("restart", message, restart=restarts)
        if restarts > limit:
            raise CheckpointError(
                f"stages.{self.id}: workers were lost {restarts} times, cluster.max_restarts allows {limit}; the last "
                f"time: {lost}; logs are in {self.folder.path / 'logs'}; the same command goes on from the last "
                "checkpoint"
            ) from lost
        self.context.say(self.id, message)

    def _prepare_start(self, status: Status) -> Path | None:
        """The bundle to start from, brought to this stage's shape; the surgery is reported and kept."""
        if self.source is None:
            return None
        status.init_from = self.source.name
        init = self.folder.path / "init"
        if (self.folder.path / "surgery.json").is_file():
            return init
        parent = load_bundle(self.source.path)
        state, report = adapt(
            parent.state, parent.spec, self.spec, from_classes=parent.classes, to_classes=self.classes
        )
        save_bundle(init, state, self.spec, self.preprocess, self.classes, {"init_from": self.source.name})
        write_json(self.folder.path / "surgery.json", report.to_dict())
        (self.folder.path / "surgery.txt").write_text(f"{report}\n")
        self.context.say(self.id, f"starts from {self.source.name}: {report.summary()}")
        return init

    def _say_what_is_kept(self, selection: Selection, again: bool) -> None:
        for reason in selection.passed_over:
            self.context.say(self.id, f"passed over: {reason}")
            self.folder.event("passed_over", reason)
        if selection.manifest is None:
            if again:
                message = "no checkpoint is committed: starts again from its first step"
                self.context.say(self.id, message)
                self.folder.event("start_again", message)
            return
        manifest = selection.manifest
        resources = self.context.config.resources(self.stage)
        kept = f"resumes at step {manifest.step} ({manifest.slots:,} samples) from {selection.folder}; "
        kept += "kept: weights, optimiser"
        kept += ", average" if self.stage.ema else ""
        kept += ", position in the data"
        if (manifest.world_size, manifest.zero_stage) != (resources.workers, self.stage.engine.zero_stage):
            kept += (
                f"; re-split: {manifest.world_size} workers with ZeRO-{manifest.zero_stage} to "
                f"{resources.workers} with ZeRO-{self.stage.engine.zero_stage}"
            )
        self.context.say(self.id, kept)
        self.folder.event("resume", kept, step=manifest.step)

    def first_job(self, status: Status) -> TrainJob:
        """The job of a stage that has no checkpoint and starts from its own initial weights."""
        return self._job(status, init=None, selection=Selection(None, None, []))

    def _job(self, status: Status, init: Path | None, selection: Selection) -> TrainJob:
        """What the ranks need to start, or to go on from a checkpoint."""
        stage, lanes = self.stage, self.stage.data.lanes
        samples_per_epoch = lanes * (self.train.index.num_samples // lanes)

        def steps(duration: Any) -> int:
            return max(duration.steps(samples_per_epoch, stage.global_batch_size), 1)

        return TrainJob(
            folder=self.folder.path.absolute(),
            stage=stage,
            spec=self.spec,
            preprocess=self.preprocess,
            classes=self.classes,
            train=self.train,
            val=self.val,
            seed=stage_seed(self.context.config.seed, self.id),
            samples_per_epoch=samples_per_epoch,
            total_steps=steps(stage.duration),
            warmup_steps=stage.schedule.warmup.steps(samples_per_epoch, stage.global_batch_size),
            checkpoint_steps=steps(stage.checkpoint.every),
            eval_steps=steps(stage.eval.every),
            digest=status.digest,
            attempt=secrets.token_hex(4),
            init=init.absolute() if init else None,
            resume_from=selection.folder.absolute() if selection.folder else None,
            sink=MLflowSink(self.context.tracker.uri, status.mlflow_run_id or ""),
        )

    def _result(self, job: TrainJob) -> dict[str, Any]:
        rows = read_metrics(self.folder.path)
        validated = [row for row in rows if "val/accuracy" in row]
        speeds = [row["speed/images_per_s"] for row in rows if "speed/images_per_s" in row]
        waits = [row["speed/data_wait_share"] for row in rows if "speed/data_wait_share" in row]
        at_start = [row for row in validated if row["step"] == 0]
        return {
            "steps": job.total_steps,
            "samples": job.total_steps * self.stage.global_batch_size,
            "images_per_s": statistics.median(speeds) if speeds else None,
            "data_wait_share": statistics.median(waits) if waits else None,
            "start_accuracy": at_start[0]["val/accuracy"] if at_start else None,
            "accuracy": validated[-1]["val/accuracy"] if validated else None,
            "loss": validated[-1]["val/loss"] if validated else None,
            "image_size": list(self.spec.image_size),
            "patch_size": list(self.spec.patch),
            "variant": self.spec.variant,
        }

    def artifacts(self) -> list[tuple[Path, str | None]]:
        """What the run keeps in MLflow: (file or folder, folder there)."""
        files = [(self.folder.path / name, None) for name in ("surgery.json", "surgery.txt", "metrics.jsonl")]
        return [*files, (self.folder.model, "model")]

    def metrics(self, result: dict[str, Any]) -> dict[str, float]:
        """Rank 0 has logged them step by step."""
        return {}

    def track_inputs(self, run_id: str) -> None:
        tracker = self.context.tracker
        tracker.params(run_id, self.stage.model_dump(mode="json", exclude={"model": {"variant"}}))
        tracker.params(run_id, {"variant": self.spec.variant, "classes": len(self.classes)})
        for context, dataset in (("train", self.train), ("val", self.val)):
            if dataset:
                name = Path(dataset.config.shards).name
                tracker.dataset(run_id, name, dataset.index.url, dataset.index.digest, context)


def with_absolute_paths(stage: TrainStage) -> TrainStage:
    """The stage as ranks need it: Ray may start them in another working directory."""
    if stage.data.exclude is None:
        return stage
    data = stage.data.model_copy(update={"exclude": str(Path(stage.data.exclude).absolute())})
    return stage.model_copy(update={"data": data})


def stage_seed(seed: int, stage_id: str) -> int:
    """Stages draw independently of each other, each the same in every run of a config."""
    digest = hashlib.sha256(json.dumps([seed, stage_id]).encode()).digest()
    return int.from_bytes(digest[:4], "little")
