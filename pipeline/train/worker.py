"""A training stage on one rank, from its first byte to the finished model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.checkpoints.manifest import read_manifest
from pipeline.errors import Interrupted, TrackingError
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.minivit import MiniViT
from pipeline.stream.batch import Batch
from pipeline.stream.loader import EvalLoader, TrainLoader
from pipeline.stream.resolution import size_at
from pipeline.tasks import build_task
from pipeline.train.commit import commit_collective, require_current_attempt, unwritable_as_error
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.job import STOP, Dataset, TrainJob
from pipeline.train.ledger import ROW_FIELDS, MetricsLedger
from pipeline.train.loop import Meter, TrainingStep, derive_seed, evaluate_collective
from pipeline.train.optim import build_optimizer, lr_ratio, parameter_groups

INITIAL_WEIGHTS = 2**63  # stands for the step in the seed of the initial weights


@dataclass
class Position:
    """Where the run is: completed steps and, by the global batch size, slots consumed."""

    step: int
    global_batch_size: int

    @property
    def slots(self) -> int:
        return self.step * self.global_batch_size


class TrainWorker:
    """Set-up, steps and what happens between them, for one rank."""

    def __init__(self, job: TrainJob) -> None:
        self.job, stage = job, job.stage
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = select_device()
        self.dtype = precision_dtype(stage.engine.precision)
        self.task = build_task(stage.task, job.spec.num_classes)
        model = self._model()
        groups = parameter_groups(model, stage.optimizer, job.spec.depth)
        optimizer = build_optimizer(groups, stage.optimizer)
        self.engine = Engine(model, optimizer, stage.engine, clip_grad_norm=stage.optimizer.clip_grad_norm)
        self.ema = ShardedEMA(self.engine.module, stage.ema) if stage.ema else None
        self.position = Position(0, stage.global_batch_size)
        self.val_metrics: dict[str, float] = {}
        self.size_at = partial(  # travels to the loader's processes
            size_at,
            total_steps=job.total_steps,
            base_size=job.spec.image_size,
            resolution=stage.resolution,
            seed=job.seed,
        )
        if job.resume_from:
            self._resume_collective(job.resume_from)
        self.meter = Meter.on(self.engine.device, self.task)
        self.step_once = TrainingStep(
            self.engine, self.task, job.preprocess, self.dtype, stage.global_batch_size, self.ema, job.seed
        )
        self.ledger = MetricsLedger(job.folder, self.position.step) if self.rank == 0 else None
        self._send_kept_rows()

    def _model(self) -> MiniViT:
        torch.manual_seed(derive_seed(self.job.seed, INITIAL_WEIGHTS))
        model = MiniViT.from_spec(self.job.spec)
        if self.job.init and not self.job.resume_from:
            model.load_state_dict(load_bundle(self.job.init).state)
        return model

    def _resume_collective(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.engine.load_collective(folder, saved_world_size=manifest.world_size, saved_zero_stage=manifest.zero_stage)
        if self.ema:
            self.ema.load_collective(folder)
        self.position.step = manifest.step
        self.val_metrics = manifest.metrics

    def _send_kept_rows(self) -> None:
        """Hand over what was logged before; the sink has all but what a kill took from it, and sends only that."""
        for row in self.ledger.kept if self.ledger else []:
            metrics = {key: value for key, value in row.items() if key not in ROW_FIELDS}
            self.job.sink.log(int(row["step"]), metrics, row["time"])

    def run_collective(self) -> None:
        """Train to the end, evaluating and committing on the way; leave the finished model in `model/`."""
        if self.position.step == 0 and self.job.init:
            self._evaluate_collective()
        with self.loader() as batches:
            self.advance_collective(batches, self.job.total_steps)
        self._finish_collective()

    def advance_collective(self, batches: Iterator[Batch], until_step: int) -> None:
        """Train up to `until_step` completed steps."""
        self.meter.restart()
        while self.position.step < until_step:
            step = self.position.step
            waiting_since = time.perf_counter()
            batch = next(batches)
            self.meter.waited_s += time.perf_counter() - waiting_since
            lr = self.engine.set_lr(self._lr_ratio(step))
            self.step_once(batch, step, self._micro_batches(step), self.meter)
            self.position.step += 1
            self._between_steps_collective(lr)

    def _between_steps_collective(self, lr: float) -> None:
        """Report, evaluate and commit, each when it is due."""
        job, step = self.job, self.position.step
        last = step == job.total_steps
        if last or step % job.stage.log_every == 0:
            height, width = self.size_at(step - 1)
            report = self.meter.report_collective(self.task) | {
                "train/lr": lr,
                "train/image_size": math.sqrt(height * width),
                "train/epoch": self.position.slots / job.samples_per_epoch,
            }
            grad_norm = self.engine.grad_norm()
            self._log(report if grad_norm is None else report | {"train/grad_norm": grad_norm})
            if not last and self._stop_requested_collective():
                self._commit_collective()
                raise Interrupted(f"{job.folder.name}: stopped on request after a commit at step {step}")
        evaluate_now, commit_now = (last or step % every == 0 for every in (job.eval_steps, job.checkpoint_steps))
        if evaluate_now:
            self._evaluate_collective()
        if commit_now:
            self._commit_collective()
        if evaluate_now or commit_now:
            self.meter.restart()  # the speed is that of training alone

    def _stop_requested_collective(self) -> bool:
        """Whether the driver has asked to stop; rank 0 looks, so that all ranks agree."""
        asked = torch.tensor(
            self.rank == 0 and (self.job.folder / STOP).exists(), dtype=torch.int32, device=self.device
        )
        dist.broadcast(asked, src=0)
        return bool(asked)

    def _lr_ratio(self, step: int) -> float:
        schedule = self.job.stage.schedule
        return lr_ratio(step, self.job.total_steps, self.job.warmup_steps, schedule.name, schedule.final_lr_ratio)

    def _micro_batches(self, step: int) -> int:
        """Backward passes of a step on every rank: enough for the largest share, more where images are larger."""
        stage = self.job.stage
        if stage.micro_batch_size is None:
            return 1
        height, width = self.size_at(step)
        base_height, base_width = self.job.spec.image_size
        growth = max(height * width / (base_height * base_width), 1.0)
        largest_share = math.ceil(stage.global_batch_size / self.world_size)
        return math.ceil(largest_share * growth / stage.micro_batch_size)

    def loader(self) -> TrainLoader:
        """This rank's batches, from where the run stands."""
        job, train = self.job, self.job.train
        return TrainLoader(
            train.index,
            train.config,
            job.stage.data,
            channels=job.spec.channels,
            num_classes=job.spec.num_classes,
            seed=job.seed,
            rank=self.rank,
            world_size=self.world_size,
            global_batch_size=job.stage.global_batch_size,
            size_at=self.size_at,
            start_slot=self.position.slots,
            quarantine_path=job.folder / "quarantine.jsonl",
            pin_memory=self.device.type == "cuda",
        )

    def _log(self, metrics: dict[str, float]) -> None:
        if self.ledger:
            self.ledger.append(self.position.step, self.position.slots, metrics)
            self.job.sink.log(self.position.step, metrics)

    def _evaluate_collective(self) -> None:
        """Metrics of the current weights (their average, if there is one) on the validation set."""
        if self.job.val is None:
            return
        averaged = self.ema.swapped_in_collective() if self.ema else nullcontext()
        loader = self._eval_loader(self.job.val)
        with averaged:
            means, _ = evaluate_collective(self.engine.module, self.task, self.job.preprocess, self.dtype, loader)
        self.val_metrics = {f"val/{name}": value for name, value in means.items()}
        self._log(self.val_metrics)

    def _eval_loader(self, data: Dataset) -> EvalLoader:
        return EvalLoader(
            data.index,
            data.config,
            channels=self.job.spec.channels,
            num_classes=self.job.spec.num_classes,
            size=self.job.spec.image_size,
            rank=self.rank,
            world_size=self.world_size,
            batch_size=self.job.stage.eval.batch_size,
            loader_workers=self.job.stage.data.loader_workers,
            pin_memory=self.device.type == "cuda",
        )

    def _commit_collective(self) -> None:
        commit_collective(self.engine, self.ema, self.job, self.position.step, self.val_metrics)

    def _finish_collective(self) -> None:
        """Write the finished model, whole and in fp32: the moving average if there is one."""
        job = self.job
        state = self.engine.full_state_collective()
        if self.ema:
            state |= self.ema.full_state_collective()
        if self.rank == 0:
            require_current_attempt(self.job)
            provenance = {
                "stage": str(job.folder.name),
                "step": self.position.step,
                "samples": self.position.slots,
                "ema": job.stage.ema,
                "digest": job.digest,
                "metrics": self.val_metrics,
            }
            save_bundle(job.folder / "model", state, job.spec, job.preprocess, job.classes, provenance)
        dist.barrier()

    def close(self) -> None:
        """Send and write what was logged, however training ended."""
        if self.ledger:
            self.ledger.close()
            self.job.sink.close()


def train_worker(job: TrainJob) -> None:
    """Run a training stage on this rank; called by the cluster on every rank with the same job."""
    with unwritable_as_error(job.folder):
        worker = TrainWorker(job)
        try:
            worker.run_collective()
        except BaseException:
            with suppress(TrackingError):  # would hide what went wrong
                worker.close()
            raise
        worker.close()
