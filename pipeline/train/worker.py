"""A training stage on one rank, from set-up to the finished model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipeline.checkpoints.manifest import read_manifest
from pipeline.checkpoints.retention import best_step
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import explain_unwritable, open_storage
from pipeline.errors import TrainingError
from pipeline.models.bundle import load_bundle
from pipeline.models.compiled import compile_layers
from pipeline.models.encoder import Encoder
from pipeline.models.minivit import MiniViT
from pipeline.models.spec import Pair
from pipeline.shards import bad_samples
from pipeline.stream.batch import Batch
from pipeline.stream.loader import TrainLoader
from pipeline.stream.order import step_shares
from pipeline.stream.source import build_mixture
from pipeline.tasks.task import task_of
from pipeline.train.control import Control
from pipeline.train.device import compute_deterministically, select_device
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.feed import on_device
from pipeline.train.finished_model import save_finished_collective
from pipeline.train.first_samples import FirstSamples
from pipeline.train.job import RankContext, TrainJob, stage_id
from pipeline.train.ledger import MetricsLedger, read_metrics
from pipeline.train.loop import Meter, TrainingStep
from pipeline.train.lr_schedule import lr_ratio
from pipeline.train.optim import build_optimizer, parameter_groups
from pipeline.train.saver import Saver
from pipeline.train.seeds import INITIAL_WEIGHTS, derive_seed
from pipeline.train.state import TrainState
from pipeline.train.step_shapes import micro_batches_at, patch_at, step_shapes
from pipeline.train.teacher import MovingTeacher
from pipeline.train.validation import Validation


class TrainWorker:
    """Set-up, steps and the work between steps for one rank. `step` counts completed steps."""

    def __init__(self, job: TrainJob, context: RankContext) -> None:
        self.job, stage = job, job.stage
        self.watch = context.watch
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = select_device()
        if stage.engine.deterministic:
            compute_deterministically()
        model = self._model()
        task = task_of(stage.task).module(model, job.classes, job.preprocess)
        groups = parameter_groups(model, stage.optimizer)
        optimizer = build_optimizer(
            groups,
            stage.optimizer,
            stage.global_batch_size,
            partitioned=stage.engine.zero_stage > 0,
            precision=stage.engine.precision,
        )
        self.watch.beat()
        clip = stage.optimizer.clip_grad_norm
        self.engine = Engine(task, optimizer, stage.engine, clip_grad_norm=clip, model=model)
        self.watch.beat()
        self.ema = ShardedEMA(self.engine.flats, stage.ema) if stage.ema else None
        self.teacher = MovingTeacher(self.engine, task, job.total_steps) if task.follower else None
        self.state = TrainState(self.engine, self.ema, self.teacher)
        self.validation = Validation(job, self.engine, self.ema or self.teacher, self.watch)
        self.meter = Meter.on(self.engine.device, task)
        self.step, self.skipped_in_a_row = 0, 0
        self.val_metrics: dict[str, float] = {}  # of the current weights; empty until they are validated
        self.measured = dict(job.measured)
        self.mixture = build_mixture(job.train, stage.data, job.seed) if len(job.train) > 1 else None
        if job.resume_from:
            self._resume_collective(job.resume_from)
        self.first_samples = FirstSamples(stage_id(job.folder), self.engine.device)
        self.saver = Saver(self.state, job, self.watch.beat)
        self.engine.before_change = self.saver.wait_copied
        self.control = Control(job, context, self.engine.device)
        self.size_at = job.sizes()
        _, self.largest_share = step_shares(stage.data.lanes, stage.global_batch_size, self.world_size)
        self.step_once = TrainingStep(self.engine, self.ema, job.seed, self.largest_share, self.teacher)
        self.ledger = MetricsLedger(job.folder, self.step) if self.rank == 0 else None

    def _model(self) -> MiniViT:
        torch.manual_seed(derive_seed(self.job.seed, INITIAL_WEIGHTS))
        stage, spec = self.job.stage, self.job.spec
        model = MiniViT.from_spec(spec, init=stage.model.init)
        if self.job.init and (stage.optimizer.freeze or not self.job.resume_from):
            model.load_state_dict(load_bundle(self.job.init).state)
        model.freeze(stage.optimizer.freeze)
        for encoder in (module for module in model.modules() if isinstance(module, Encoder)):
            encoder.recompute_activations(stage.engine.activation_checkpointing)
        if stage.engine.compile:
            sizes = len(step_shapes(stage, spec.backbone)) * len(stage.task.view_groups())
            compile_layers(model.to(self.device), sizes)
        return model

    def _resume_collective(self, folder: str) -> None:
        storage = open_storage(self.job.checkpoints)
        with storage.reading(folder):
            manifest = read_manifest(storage, folder)
            self.state.load_collective(StateReader(storage, folder, manifest, self.watch.progress))
        self.step, self.val_metrics = manifest.step, manifest.metrics
        self.meter.resume(manifest.window)

    def run_collective(self) -> None:
        """Train to the end, evaluating and committing along the way; saves the finished model in `model/`."""
        if self.step == 0 and self.job.init:
            self._evaluate_collective()
        with self.batches() as batches:
            self.advance_collective(batches, self.job.total_steps)
        self.saver.finish()
        dist.barrier()  # the loaders of all ranks are closed, so the list of bad samples is complete
        self._log_bad_samples()
        save_finished_collective(self.job, self.engine.model, self.step, self.val_metrics, self.watch)

    def advance_collective(self, batches: Iterator[Batch], until_step: int) -> None:
        """Train up to `until_step` completed steps."""
        self.meter.begin()
        while self.step < until_step:
            self.watch.beat()
            self.saver.check()
            waiting_since = time.perf_counter()
            batch = next(batches)
            self.meter.waited_s += time.perf_counter() - waiting_since
            step = self.step
            self.first_samples.look_collective(batch, last=step + 1 == self.job.total_steps)
            lr = self.engine.set_lr(self._lr_ratio(step))
            applied = self.step_once(batch, step, self._micro_batches(step), self.meter, self._patch_at(step))
            self.step += 1
            self.val_metrics = {}
            self._count_skipped_collective(applied)
            self._between_steps_collective(lr)

    def _between_steps_collective(self, lr: float) -> None:
        """Report, evaluate, commit and leave, each when it is due."""
        job, step = self.job, self.step
        last = step == job.total_steps
        if last or step % job.stage.log_every == 0:
            self._report_collective(lr)
        if last or step % job.eval_steps == 0:
            self._evaluate_collective()
        answer = self.control.look_collective(step) if self.control.is_due(step) and not last else None
        leave = answer.leave if answer else None
        if last or step % job.checkpoint_steps == 0 or leave or (answer and answer.save) or self._is_best():
            self._commit_collective()
        if leave:
            self.saver.finish()
            raise leave

    def _is_best(self) -> bool:
        """Whether these weights were validated and beat all committed ones by the `keep_best` metric."""
        best_by = self.job.stage.best_by
        if best_by is None or not self.val_metrics:
            return False
        return best_step(self.measured | {self.step: self.val_metrics}, *best_by) == self.step

    def _report_collective(self, lr: float) -> None:
        size, patch = self.size_at(self.step - 1), self._patch_at(self.step - 1)
        tokens = task_of(self.job.stage.task).encoder_tokens(self.job.spec, size, patch)  # of all views of a sample
        report = self.meter.report_collective(self.engine.module, self.job.stage.global_batch_size)
        if math.isfinite(norm := self.engine.grad_norm()):
            report["train/grad_norm"] = norm
        report |= {
            "train/lr": lr,
            "train/image_size": math.sqrt(math.prod(size)),
            "train/patch_size": math.sqrt(math.prod(patch)),
            "train/epoch": self._slots / self.job.samples_per_epoch,
            "speed/tokens_per_s": report["speed/images_per_s"] * tokens,
            "speed/save_stall_s": self.saver.take_stall_s(),
            "speed/world_size": float(self.world_size),
            **self._samples_by_dataset(),
        }
        self._log(report)

    @property
    def _slots(self) -> int:
        """Samples consumed, which equals the position in the data."""
        return self.step * self.job.stage.global_batch_size

    def _lr_ratio(self, step: int) -> float:
        job, schedule = self.job, self.job.stage.schedule
        return lr_ratio(
            step, job.total_steps, job.warmup_steps, schedule.name, schedule.final_lr_ratio, job.decay_steps
        )

    def _patch_at(self, step: int) -> Pair:
        return patch_at(step, self.job.spec.backbone.patch, self.job.stage.resolution, self.job.seed)

    def _micro_batches(self, step: int) -> int:
        """Number of backward passes of a step on every rank: enough for the largest share."""
        stage, size, patch = self.job.stage, self.size_at(step), self._patch_at(step)
        views, backbone = stage.task.view_groups(), self.job.spec.backbone
        return micro_batches_at(size, patch, backbone, self.largest_share, stage.micro_batch_size, views)

    def _count_skipped_collective(self, applied: bool) -> None:
        """Commit the full state and raise TrainingError if too many steps in a row were skipped."""
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1
        if self.skipped_in_a_row <= self.job.stage.max_skipped_steps:
            return
        self._commit_collective()
        self.saver.finish()
        slots = f"{self._slots - self.job.stage.global_batch_size}:{self._slots}"
        raise TrainingError(
            f"{stage_id(self.job.folder)}: the gradients of {self.skipped_in_a_row} steps in a row were not finite, "
            f"and max_skipped_steps allows {self.job.stage.max_skipped_steps}; the last batch has the slots {slots}; "
            f"inspect it with `minivit run CONFIG train.replay_slots={slots}`"
        )

    @contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        """This rank's batches from the current position on, on its device."""
        job = self.job
        loader = TrainLoader(
            job.train,
            job.stage.data,
            channels=job.spec.backbone.channels,
            targets=job.stage.task.targets,
            views=job.stage.task.view_groups(),
            seed=job.seed,
            rank=self.rank,
            world_size=self.world_size,
            global_batch_size=job.stage.global_batch_size,
            size_at=self.size_at,
            start_slot=self._slots,
            quarantine_path=job.folder / bad_samples.TRAIN,
        )
        with loader, self.watch.following(loader.bytes_read), on_device(loader, self.device) as batches:
            yield batches

    def _samples_by_dataset(self) -> dict[str, float]:
        """The number of samples of each data set of a mixture that the run has consumed."""
        if self.mixture is None:
            return {}
        counts = self.mixture.counts(self._slots)
        return {f"data/samples/{source.name}": n for source, n in zip(self.job.train, counts, strict=True)}

    def _log(self, metrics: dict[str, float]) -> None:
        if self.ledger:
            self.ledger.append(self.step, self._slots, metrics)

    def _evaluate_collective(self) -> None:
        """Measure the current weights (or their average or teacher) on held-out data, and log it."""
        if self.job.val is None and self.job.knn is None:
            return
        with self.meter.excluded():
            self.val_metrics = self.validation.measure_collective()
        self._log(self.val_metrics | self._bad_samples())

    def _log_bad_samples(self) -> None:
        """Log the final count, unless the last validation or a driver that was killed since logged the same."""
        if self.ledger:
            final = {"step": self.step, **self._bad_samples()}
            if not any(row.items() >= final.items() for row in read_metrics(self.job.folder)):
                self._log(self._bad_samples())

    def _bad_samples(self) -> dict[str, float]:
        """The number of bad training samples that all ranks have found since the stage began."""
        if self.rank > 0:
            return {}
        return {"data/bad_samples": float(len(bad_samples.read_quarantine(self.job.folder / bad_samples.TRAIN)))}

    def _commit_collective(self) -> None:
        """Begin to commit the current state."""
        if self.ledger:
            self.ledger.sync()
        self.saver.begin_collective(self.step, self.val_metrics, self.meter.state())
        self.measured[self.step] = self.val_metrics
        self.control.saved()

    def close(self) -> None:
        """Close its files."""
        if self.ledger:
            self.ledger.close()


def train_worker(job: TrainJob, context: RankContext) -> None:
    """Run a training stage on this rank; called by the cluster on every rank with the same job."""
    with explain_unwritable(job.folder):
        worker = TrainWorker(job, context)
        try:
            worker.run_collective()
        finally:
            worker.close()
