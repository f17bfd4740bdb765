"""Replaying one batch of a run with every check enabled, to find what makes its loss or gradients infinite."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.checkpoints.manifest import read_manifest
from pipeline.checkpoints.shard_file import WEIGHTS
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import open_storage
from pipeline.files import write_json
from pipeline.models.minivit import MiniViT
from pipeline.stream.batch import Batch
from pipeline.stream.loader import TrainLoader
from pipeline.tasks.base import Outputs, TaskModule
from pipeline.tasks.ranks import ALONE
from pipeline.tasks.task import task_of
from pipeline.train.coupled import Coupling, couple
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.inputs import outputs_of
from pipeline.train.job import RankContext, TrainJob
from pipeline.train.micro_batch import split, to_device
from pipeline.train.seeds import COUPLED, DROP_PATH, derive_seed
from pipeline.train.stall import StallWatch
from pipeline.train.state import TEACHER
from pipeline.train.step_shapes import patch_at

NAME = "replay.json"
MOST_SAMPLES = 16  # listed in the result, highest losses first


@dataclass(frozen=True)
class ReplayJob:
    """The slots `first` to `stop` of a training job, with the weights of the checkpoint that it would resume from."""

    train: TrainJob
    first: int
    stop: int


class FirstNotFinite:
    """Records the name of the first module whose output is not finite, until it is closed."""

    def __init__(self, model: nn.Module) -> None:
        self.name: str | None = None
        leaves = ((name, module) for name, module in model.named_modules() if not list(module.children()))
        self._handles = [module.register_forward_hook(partial(self._look, name)) for name, module in leaves]

    def _look(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.name is None and isinstance(output, Tensor) and not output.isfinite().all():
            self.name = name

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def replay_worker(job: ReplayJob, context: RankContext) -> None:
    """Run forward and backward for one batch on a single rank; writes `replay.json` to the stage's folder."""
    train = job.train
    task = load_task(train, context.watch)
    with loader(job) as batches, context.watch.following(batches.bytes_read):
        batch = next(batches)
    found = examine(task, train, batch, context.watch.beat)
    step = job.first // (job.stop - job.first)
    write_json(train.folder / NAME, {"slots": [job.first, job.stop], "step": step, "from": train.resume_from, **found})


def load_task(job: TrainJob, watch: StallWatch) -> TaskModule:
    """The task with the checkpoint's training weights, not their average, and with its teacher."""
    device, dtype = select_device(), precision_dtype(job.stage.engine.precision)
    model, of_teacher = MiniViT.from_spec(job.spec), None
    if job.resume_from:
        storage = open_storage(job.checkpoints)
        with storage.reading(job.resume_from):
            manifest = read_manifest(storage, job.resume_from)
            reader = StateReader(storage, job.resume_from, manifest, watch.progress)
            model.load_state_dict(reader.whole(WEIGHTS))
            of_teacher = reader.whole(TEACHER) if TEACHER in reader.keys else None
    model.freeze(job.stage.optimizer.freeze)
    model.train().to(device=device, dtype=dtype)
    task = task_of(job.stage.task).module(model, job.classes, job.preprocess)
    if task.follower and of_teacher:
        task.follower.model.load_state_dict(of_teacher, strict=False)  # the rest equals the model's
    return task


def loader(job: ReplayJob) -> TrainLoader:
    """A loader that gives the whole batch to this one rank."""
    train = job.train
    return TrainLoader(
        train.train,
        train.stage.data,
        channels=train.spec.backbone.channels,
        targets=train.stage.task.targets,
        views=train.stage.task.view_groups(),
        seed=train.seed,
        rank=0,
        world_size=1,
        global_batch_size=job.stop - job.first,
        size_at=train.sizes(),
        start_slot=job.first,
    )


def examine(task: TaskModule, job: TrainJob, batch: Batch, beat: Callable[[], None]) -> dict[str, Any]:
    """A batch's effect on a model: the loss of each sample, and where the first infinity or NaN appears.

    Gradients are those of the loss of the whole batch, before clipping.
    """
    anomalies: list[str] = []
    hook = FirstNotFinite(task.model)
    normalisers = task.normalisers(batch).clamp(min=1).float()
    device = next(task.parameters()).device
    patch = patch_at(batch.step, job.spec.backbone.patch, job.stage.resolution, job.seed)
    forward = partial(outputs_of, task, task, key_seed=derive_seed(job.seed, DROP_PATH), patch=patch)
    samples = [to_device(one, device) for one in split(batch, len(batch.slots))]
    coupling = coupling_of(task, forward, samples, derive_seed(job.seed, COUPLED, batch.step))
    terms = []  # loss terms of each sample, on the CPU
    for row, one in enumerate(samples):
        terms.append(loss_and_backward(forward, one, row, normalisers.to(device), coupling, anomalies))
        beat()
    hook.close()
    losses = (torch.stack(terms) / own_normalisers(task, batch)).sum(dim=1)
    gradients = {name: p.grad.float() for name, p in task.model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    ranked = losses.nan_to_num(nan=float("inf")).argsort(descending=True)[:MOST_SAMPLES].tolist()
    return {
        "loss": float((torch.stack(terms).sum(dim=0) / normalisers.cpu()).sum())
        + (float(coupling.loss) if coupling else 0.0),
        "gradient_norm": float(norm),
        "gradients_not_finite": [name for name, value in gradients.items() if not value.isfinite().all()],
        "losses_not_finite": int((~losses.isfinite()).sum()),
        "first_module_not_finite": hook.name,
        "anomaly": anomalies[0] if anomalies else None,
        "samples": [describe(batch, row, float(losses[row])) for row in ranked],
    }


def own_normalisers(task: TaskModule, batch: Batch) -> Tensor:
    """[B, T]: the normalisers of each sample's loss terms if it were alone in the batch."""
    return torch.stack([task.normalisers(one) for one in split(batch, len(batch.slots))]).clamp(min=1).float()


@torch.no_grad()
def coupling_of(
    task: TaskModule, forward: Callable[[Batch], Outputs], samples: Sequence[Batch], seed: int
) -> Coupling | None:
    """The coupling of the samples; None if the task does not couple them."""
    if not task.coupled:
        return None
    outputs, weights = [forward(one) for one in samples], torch.cat([one.weights for one in samples])
    with torch.enable_grad():
        return couple(task, outputs, weights, ALONE, seed)


def loss_and_backward(
    forward: Callable[[Batch], Outputs],
    sample: Batch,
    row: int,
    normalisers: Tensor,
    coupling: Coupling | None,
    anomalies: list[str],
) -> Tensor:
    """Terms of a sample's own loss [T], on the CPU; adds the messages of anomaly detection to `anomalies`."""

    def once() -> Tensor:
        outputs = forward(sample)
        loss = (outputs.losses / normalisers).sum()
        (loss + coupling.pull(outputs, row) if coupling else loss).backward()
        return outputs.losses.detach().cpu()

    try:
        with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly(check_nan=True):
            return once()
    except RuntimeError as error:
        anomalies.append(str(error))
        return once()  # without detection it runs to the end and shows which gradients are affected


def describe(batch: Batch, row: int, loss: float) -> dict[str, Any]:
    """A human-readable description of one sample of a batch."""
    pixels = next(iter(batch.views.values()))[row]
    numbers = {name: tensor for name, tensor in batch.targets.items() if tensor.shape == batch.weights.shape}
    return {
        "slot": int(batch.slots[row]),
        "key": batch.keys[row],
        **{name: tensor[row].item() for name, tensor in numbers.items()},
        "weight": float(batch.weights[row]),
        "loss": loss,
        "pixels": [int(pixels.min()), int(pixels.max())],
    }
