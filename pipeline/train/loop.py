"""The training step, and the metrics collected between reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.checkpoints.manifest import MeterState
from pipeline.models.spec import Pair
from pipeline.stream.batch import Batch
from pipeline.tasks.base import TaskModule
from pipeline.tasks.ranks import Ranks
from pipeline.train.coupled import backward_coupled
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.inputs import outputs_of
from pipeline.train.micro_batch import split
from pipeline.train.seeds import COUPLED, DROP_PATH, derive_seed
from pipeline.train.teacher import MovingTeacher


@dataclass
class Meter:
    """Sums since the last report: measures over this rank's samples, steps and seconds."""

    sums: Tensor  # float64, the task's
    steps: int = 0
    skipped: int = 0  # steps whose gradient was not finite; `sums` excludes their samples
    waited_s: float = 0.0
    excluded_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def on(cls, device: torch.device, task: TaskModule) -> Meter:
        return cls(torch.zeros(len(task.sum_names), dtype=torch.float64, device=device))

    def report_collective(self, task: TaskModule, global_batch_size: int) -> dict[str, float]:
        """Metrics over all ranks of the steps since the last report; resets the meter."""
        dist.all_reduce(self.sums)
        means = task.means(self.sums)  # waits for the device, so that the elapsed time includes its work
        elapsed = time.perf_counter() - self.started - self.excluded_s
        report = {
            **{f"train/{name}": value for name, value in means.items()},
            "train/skipped_steps": float(self.skipped),
            "speed/images_per_s": self.steps * global_batch_size / elapsed,
            "speed/step_time_s": elapsed / max(self.steps, 1),
            "speed/data_wait_share": self.waited_s / elapsed,
        }
        self.restart()
        return report

    def begin(self) -> None:
        """Start measuring training time."""
        self.waited_s = self.excluded_s = 0.0
        self.started = time.perf_counter()

    def restart(self) -> None:
        self.sums.zero_()
        self.steps = self.skipped = 0
        self.begin()

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Time spent in this context is excluded from throughput."""
        began = time.perf_counter()
        yield
        self.excluded_s += time.perf_counter() - began

    def state(self) -> MeterState:
        """State for a checkpoint, so that the next report of a resumed run equals that of an uninterrupted run."""
        return MeterState(self.steps, self.skipped, [self.sums.tolist()])

    def resume(self, window: MeterState) -> None:
        """Resume from a checkpoint's window: each rank takes its sums; if the world size changed, rank 0 takes all.

        Ignores a window with a different number of sums, which comes from another version of the task.
        """
        rank, sums = dist.get_rank(), torch.tensor(window.sums, dtype=torch.float64)
        if sums.shape[-1] != len(self.sums):
            return
        if len(sums) == dist.get_world_size():
            self.sums.copy_(sums[rank])
        elif rank == 0:
            self.sums.copy_(sums.sum(dim=0))
        self.steps, self.skipped = window.steps, window.skipped


@dataclass
class TrainingStep:
    """One optimiser step on this rank's share of a global batch."""

    engine: Engine
    ema: ShardedEMA | None
    seed: int
    largest_share: int  # samples of a step on the rank with the most
    teacher: MovingTeacher | None = None

    def __post_init__(self) -> None:
        self.key_seed = derive_seed(self.seed, DROP_PATH)

    def __call__(self, batch: Batch, step: int, micro_batches: int, meter: Meter, patch: Pair | None = None) -> bool:
        """Forward, backward and update. Collective: `micro_batches` must be the same on every rank.

        The batch must be on the engine's device; processing a micro-batch never makes the host wait for the device.
        Each term of the loss is its sum over the global batch divided by its normaliser over the global batch, and
        DeepSpeed averages gradients over the W ranks. So a rank's loss is its own sum times W / normaliser, which gives
        the gradient of the global batch however unequal the shares are. If it is not finite on any rank, all ranks
        leave everything unchanged and return False. `patch` is the patch size of the step, (height, width) in pixels;
        default: the model's own.
        """
        task: TaskModule = self.engine.module
        normalisers = task.normalisers(batch)
        dist.all_reduce(normalisers)
        scales = (dist.get_world_size() / normalisers.clamp(min=1)).float()
        forward = partial(outputs_of, self.engine, task, key_seed=self.key_seed, patch=patch)
        parts = list(split(batch, micro_batches))
        if task.coupled:
            ranks = Ranks(dist.get_world_size(), max(self.largest_share, micro_batches))
            seed = derive_seed(self.seed, COUPLED, step)
            sums = backward_coupled(task, forward, self.engine.backward, parts, scales, ranks, seed)
        else:
            sums = torch.zeros_like(meter.sums)
            for micro in parts:
                outputs = forward(micro)
                self.engine.backward((outputs.losses * scales).sum())
                sums += outputs.sums
        meter.steps += 1
        if not self.engine.step():
            meter.skipped += 1
            return False
        if self.ema:
            self.ema.update(step + 1)
        if self.teacher:
            self.teacher.update_collective(step + 1)
        meter.sums += sums
        return True
