"""A training stage on one rank, from its first byte to the finished model."""

from __future__ import annotations

import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.checkpoints.manifest import Manifest, payload_files, read_manifest, record_file, write_manifest
from pipeline.checkpoints.store import prune, step_folder
from pipeline.errors import CheckpointError
from pipeline.models.bundle import load_bundle, save_bundle
from pipeline.models.minivit import MiniViT
from pipeline.stream.loader import EvalLoader, TrainLoader
from pipeline.stream.resolution import size_at
from pipeline.tasks import build_task
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.job import Dataset, TrainJob
from pipeline.train.ledger import MetricsLedger
from pipeline.train.loop import Meter, TrainingStep, derive_seed, evaluate_collective
from pipeline.train.optim import build_optimizer, lr_ratio, parameter_groups

ATTEMPT = "attempt"
INITIAL_WEIGHTS = -1  # stands for the step in the seed of the initial weights


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
        self.ledger = MetricsLedger(job.folder, self.position.step) if self.rank == 0 else None

    def _model(self) -> MiniViT:
        torch.manual_seed(derive_seed(self.job.seed, INITIAL_WEIGHTS & 0xFFFFFFFF))
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

    def run_collective(self) -> None:
        """Train to the end, evaluating and committing on the way; leave the finished model in `model/`."""
        job, stage = self.job, self.job.stage
        meter = self._meter()
        if self.position.step == 0 and job.init:
            self._evaluate_collective()
        step_once = TrainingStep(
            self.engine, self.task, job.preprocess, self.dtype, stage.global_batch_size, self.ema, job.seed
        )
        with self._train_loader() as loader:
            batches = iter(loader)
            self.samples_per_epoch = loader.samples_per_epoch
            meter.restart()
            while self.position.step < job.total_steps:
                step = self.position.step
                waiting_since = time.perf_counter()
                batch = next(batches)
                meter.waited_s += time.perf_counter() - waiting_since
                lr = self.engine.set_lr(self._lr_ratio(step))
                step_once(batch, step, self._micro_batches(step), meter)
                self.position.step += 1
                self._between_steps_collective(meter, lr)
        self._finish_collective()

    def _between_steps_collective(self, meter: Meter, lr: float) -> None:
        job, step = self.job, self.position.step
        last = step == job.total_steps
        if step % job.stage.log_every == 0 or last:
            height, width = self.size_at(step - 1)
            self._log(
                meter.report_collective(self.task)
                | {
                    "train/lr": lr,
                    "train/grad_norm": self.engine.grad_norm(),
                    "train/image_size": math.sqrt(height * width),
                    "train/epoch": self.position.slots / self.samples_per_epoch,
                }
            )
        evaluated = last or step % job.eval_steps == 0
        if evaluated:
            self._evaluate_collective()
        if last or step % job.checkpoint_steps == 0:
            self._commit_collective()
        if evaluated or step % job.checkpoint_steps == 0:
            meter.restart()  # the speed is that of training alone

    def _meter(self) -> Meter:
        return Meter(torch.zeros(len(self.task.metric_names) + 1, dtype=torch.float64, device=self.engine.device))

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

    def _train_loader(self) -> TrainLoader:
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
        """Write a checkpoint and commit it by its manifest, unless a newer attempt has taken over."""
        job = self.job
        root = job.folder / "checkpoints"
        folder = step_folder(root, self.position.step)
        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left uncommitted
        dist.barrier()
        self.engine.save_collective(folder)
        if self.ema:
            self.ema.save_collective(folder)
        dist.barrier()
        mine = [record_file(folder, path) for path in payload_files(folder)[self.rank :: self.world_size]]
        gathered: list[list] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(gathered, mine)
        if self.rank == 0:
            self._require_current_attempt()
            manifest = Manifest(
                step=self.position.step,
                slots=self.position.slots,
                world_size=self.world_size,
                zero_stage=job.stage.engine.zero_stage,
                digest=job.digest,
                spec=job.spec.to_dict(),
                files=sorted((record for part in gathered for record in part), key=lambda record: record.path),
                metrics=self.val_metrics,
            )
            write_manifest(folder, manifest)
            prune(root, job.stage.checkpoint.keep_last)
        dist.barrier()

    def _require_current_attempt(self) -> None:
        current = (self.job.folder / ATTEMPT).read_text()
        if current != self.job.attempt:
            raise CheckpointError(f"{self.job.folder}: a newer attempt has taken over this stage; this one ends")

    def _finish_collective(self) -> None:
        """Write the finished model, whole and in fp32: the moving average if there is one."""
        job = self.job
        state = self.engine.full_state_collective()
        if self.ema:
            state |= self.ema.full_state_collective()
        if self.rank == 0:
            self._require_current_attempt()
            provenance = {
                "stage": str(job.folder.name),
                "step": self.position.step,
                "samples": self.position.slots,
                "ema": job.stage.ema,
                "digest": job.digest,
                "metrics": self.val_metrics,
            }
            save_bundle(job.folder / "model", state, job.spec, job.preprocess, job.classes, provenance)
            self.job.sink.close()
        if self.ledger:
            self.ledger.close()
        dist.barrier()


def train_worker(job: TrainJob) -> None:
    """Run a training stage on this rank; called by the cluster on every rank with the same job."""
    TrainWorker(job).run_collective()
