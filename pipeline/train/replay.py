"""One batch of a run again, with every check on: to find what makes its loss or its gradients infinite."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
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
from pipeline.models.drop_path import sample_keys
from pipeline.models.minivit import MiniViT
from pipeline.models.per_step import per_step
from pipeline.stream.batch import Batch
from pipeline.stream.loader import TrainLoader
from pipeline.tasks import build_task
from pipeline.train.device import precision_dtype, select_device
from pipeline.train.job import RankContext, TrainJob
from pipeline.train.micro_batch import split, to_device
from pipeline.train.schedule import patch_at
from pipeline.train.seeds import DROP_PATH, derive_seed
from pipeline.train.stall import StallWatch

NAME = "replay.json"
MOST_SAMPLES = 16  # named in the result, the highest losses first
MICRO_BATCH_SIZE = 64


@dataclass(frozen=True)
class ReplayJob:
    """The slots `first` to `stop` of a training job, under the weights of the checkpoint that it would resume from."""

    train: TrainJob
    first: int
    stop: int


class FirstNotFinite:
    """The name of the first module whose output is not finite, until it is closed."""

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
    """Forward and backward of one batch on this one rank; leaves `replay.json` in the stage's folder."""
    train, device = job.train, select_device()
    model = load_model(train, context.watch).to(device=device, dtype=precision_dtype(train.stage.engine.precision))
    with loader(job) as batches, context.watch.following(batches.bytes_read):
        batch = next(batches)
    found = examine(model, train, batch, context.watch.beat)
    step = job.first // (job.stop - job.first)
    write_json(train.folder / NAME, {"slots": [job.first, job.stop], "step": step, "from": train.resume_from, **found})


def load_model(job: TrainJob, watch: StallWatch) -> MiniViT:
    """The model with the weights that it trains with: not their average."""
    model = MiniViT.from_spec(job.spec)
    if job.resume_from:
        storage = open_storage(job.checkpoints)
        with storage.reading(job.resume_from):
            manifest = read_manifest(storage, job.resume_from)
            reader = StateReader(storage, job.resume_from, manifest, watch.progress)
            model.load_state_dict(reader.whole(WEIGHTS))
    return model.train()


def loader(job: ReplayJob) -> TrainLoader:
    """The whole batch, as this one rank's share."""
    train = job.train
    return TrainLoader(
        train.train,
        train.stage.data,
        channels=train.spec.channels,
        num_classes=train.spec.num_classes,
        seed=train.seed,
        rank=0,
        world_size=1,
        global_batch_size=job.stop - job.first,
        size_at=train.sizes(),
        start_slot=job.first,
    )


def examine(model: nn.Module, job: TrainJob, batch: Batch, beat: Callable[[], None]) -> dict[str, Any]:
    """What a batch does to a model: the loss of each sample, and where the first infinity or NaN comes up.

    Gradients are those of the mean over the batch, before clipping.
    """
    anomalies: list[str] = []
    hook = FirstNotFinite(model)
    losses = torch.cat(list(losses_and_backward(model, job, batch, beat, anomalies)))
    hook.close()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    ranked = losses.nan_to_num(nan=float("inf")).argsort(descending=True)[:MOST_SAMPLES].tolist()
    return {
        "loss": float(losses.mean()),
        "gradient_norm": float(norm),
        "gradients_not_finite": [name for name, value in gradients.items() if not value.isfinite().all()],
        "losses_not_finite": int((~losses.isfinite()).sum()),
        "first_module_not_finite": hook.name,
        "anomaly": anomalies[0] if anomalies else None,
        "samples": [describe(batch, row, float(losses[row])) for row in ranked],
    }


def losses_and_backward(
    model: nn.Module, job: TrainJob, batch: Batch, beat: Callable[[], None], anomalies: list[str]
) -> Iterator[Tensor]:
    """Losses [n] of one micro-batch after the other, on the CPU; what autograd's anomaly detection says is added."""
    task, size = build_task(job.stage.task, job.spec.num_classes), len(batch.labels)
    parameter, drop_path_seed = next(model.parameters()), derive_seed(job.seed, DROP_PATH)
    patch = patch_at(batch.step, job.spec.patch, job.stage.resolution, job.seed)

    def loss_and_backward(micro: Batch) -> Tensor:
        images = job.preprocess.normalise(micro.images, parameter.dtype)
        with per_step(model, keys=sample_keys(drop_path_seed, micro.slots), patch=patch):
            losses, _ = task.loss(model, images, micro)
        (losses.sum() / size).backward()
        return losses.detach().cpu()

    for micro in split(batch, -(-size // MICRO_BATCH_SIZE)):
        micro = to_device(micro, parameter.device)
        try:
            with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly(check_nan=True):
                losses = loss_and_backward(micro)
        except RuntimeError as error:
            anomalies.append(str(error))
            losses = loss_and_backward(micro)  # to the end: which gradients are concerned
        beat()
        yield losses


def describe(batch: Batch, row: int, loss: float) -> dict[str, Any]:
    """One sample of a batch, for a person."""
    pixels = batch.images[row]
    return {
        "slot": int(batch.slots[row]),
        "key": batch.keys[row],
        "label": int(batch.labels[row]),
        "weight": float(batch.weights[row]),
        "loss": loss,
        "pixels": [int(pixels.min()), int(pixels.max())],
    }
