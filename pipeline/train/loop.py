"""The training step, and what happens between steps."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.models.bundle import Preprocess
from pipeline.stream.batch import Batch
from pipeline.tasks.classification import Classification
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.micro_batch import split, to_device


@dataclass
class Meter:
    """Sums since the last report: of metrics over samples, and of seconds."""

    sums: Tensor
    samples: int = 0
    steps: int = 0
    waited_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def on(cls, device: torch.device, task: Classification) -> Meter:
        return cls(torch.zeros(len(task.metric_names) + 1, dtype=torch.float64, device=device))

    def report_collective(self, task: Classification) -> dict[str, float]:
        """Metrics of the steps since the last report over all ranks; starts anew."""
        dist.all_reduce(self.sums)
        elapsed = time.perf_counter() - self.started
        means = task.means(self.sums)
        report = {
            "train/loss": means["loss"],
            "train/accuracy": means["accuracy"],
            "speed/images_per_s": self.samples / elapsed,
            "speed/step_time_s": elapsed / max(self.steps, 1),
            "speed/data_wait_share": self.waited_s / elapsed,
        }
        self.restart()
        return report

    def restart(self) -> None:
        self.sums.zero_()
        self.samples = self.steps = 0
        self.waited_s = 0.0
        self.started = time.perf_counter()


@dataclass
class TrainingStep:
    """One optimiser step on this rank's share of a global batch."""

    engine: Engine
    task: Classification
    preprocess: Preprocess
    dtype: torch.dtype
    global_batch_size: int
    ema: ShardedEMA | None
    seed: int

    def __call__(self, batch: Batch, step: int, micro_batches: int, meter: Meter) -> None:
        """Forward, backward and update. Collective: `micro_batches` is the same on every rank.

        DeepSpeed averages gradients over ranks, so a rank's loss is the sum over its samples times W / G: the gradient
        is that of the global batch however unequal the shares are.
        """
        # Dropout is keyed by (seed, step, rank), so that a resumed run draws what an undisturbed one draws.
        torch.manual_seed(derive_seed(self.seed, step, dist.get_rank()))
        scale = dist.get_world_size() / self.global_batch_size
        for micro in split(batch, micro_batches):
            micro = to_device(micro, self.engine.device)
            images = self.preprocess.normalise(micro.images, self.dtype)
            losses, logits = self.task.loss(self.engine, images, micro)
            self.engine.backward(losses.sum() * scale)
            meter.sums += self.task.sums(losses, logits, micro)
        self.engine.step()
        if self.ema:
            self.ema.update(step + 1)
        meter.steps += 1
        meter.samples += self.global_batch_size


def derive_seed(*key: int) -> int:
    """A 64-bit seed that depends on every number of the key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@torch.no_grad()
def evaluate_collective(
    model: nn.Module, task: Classification, preprocess: Preprocess, dtype: torch.dtype, batches: Iterable[Batch]
) -> tuple[dict[str, float], Tensor]:
    """Mean metrics and confusion counts [K, K] over all ranks' batches; every rank has equally many.

    Under ZeRO-3 the model's own hooks gather its parameters, so `model` may be the engine's module as it is.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    sums = torch.zeros(len(task.metric_names) + 1, dtype=torch.float64, device=device)
    confusion = torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64, device=device)
    for batch in batches:
        batch = to_device(batch, device)
        losses, logits = task.loss(model, preprocess.normalise(batch.images, dtype), batch)
        sums += task.sums(losses, logits, batch)
        confusion += task.confusion(logits, batch)
    dist.all_reduce(sums)
    dist.all_reduce(confusion)
    model.train(training)
    return task.means(sums), confusion.cpu()
