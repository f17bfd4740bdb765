"""What a training stage trains, from what and on which data, and the job that its ranks get."""

from __future__ import annotations

import secrets
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.checkpoints.manifest import Manifest
from pipeline.checkpoints.selection import Selection, committed, course
from pipeline.checkpoints.storage import open_storage
from pipeline.config.train_stage import TrainStage
from pipeline.models.bundle import Preprocess, load_bundle
from pipeline.models.model_spec import ModelSpec
from pipeline.shards.urls import is_local, local_path
from pipeline.stages.context import RunContext
from pipeline.stages.data import stage_data
from pipeline.stages.folder import Status
from pipeline.stages.probe_data import knn_job
from pipeline.stages.resolve import Branch, check_teacher, stage_spec
from pipeline.stages.sources import resolve_source
from pipeline.stages.tokenizer import stage_tokenizer
from pipeline.stages.types.train import train_inputs
from pipeline.stream.source import build_mixture, evaluation_of
from pipeline.train.job import TrainJob
from pipeline.train.seeds import stage_seed


class TrainSetup:
    """Everything that one branch needs to begin; constructed once all its dependencies have finished."""

    def __init__(self, context: RunContext, branch: Branch) -> None:
        assert isinstance(branch.stage, TrainStage)
        self.context, self.id, self.stage = context, branch.id, with_absolute_paths(branch.stage)
        self.folder = context.folder.stage(branch.id)
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

    @property
    def checkpoints(self) -> str:
        """Where this stage stores its checkpoints: a path or a URL."""
        storage = self.stage.checkpoint.storage
        if storage is None:
            return str(self.folder.checkpoints.absolute())
        place = f"{storage.rstrip('/')}/{self.context.config.name}/{self.id}"
        return str(local_path(place).absolute()) if is_local(place) else place

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


def with_absolute_paths(stage: TrainStage) -> TrainStage:
    """The stage for the ranks, which Ray may start in another working directory."""
    if stage.data.exclude is None:
        return stage
    data = stage.data.model_copy(update={"exclude": str(Path(stage.data.exclude).absolute())})
    return stage.model_copy(update={"data": data})
