"""The peer of `parity`: timm's Vision Transformer in a plain, hand-written PyTorch loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config.train_stage import TrainStage
from pipeline.models.bundle import Preprocess
from pipeline.models.model_spec import ModelSpec
from pipeline.models.timm_bridge import timm_config
from pipeline.stream.batch import Batch
from pipeline.stream.loader import EvalLoader, TrainLoader
from pipeline.stream.resolution import size_at
from pipeline.stream.source import Source
from pipeline.train.lr_schedule import lr_ratio
from pipeline.train.optim import peak_lr

BATCH_SIZE = 256  # of the evaluation


@dataclass(frozen=True)
class PeerJob:
    """A training stage as the plain loop reads it, and its test data."""

    stage: TrainStage
    spec: ModelSpec
    preprocess: Preprocess
    train: list[Source]
    test: Source
    total_steps: int
    warmup_steps: int
    seed: int  # of order, augmentation and initial weights
    threads: int


def train_peer(job: PeerJob) -> float:
    """Train timm's model by the stage's recipe; returns the accuracy on the test data.

    Weights are fp32, initialised as in timm; with bf16, autocast computes the products in bf16.
    """
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed % 2**63)
    architecture, arguments = timm_config(job.spec)
    model = timm.create_model(architecture, **arguments, drop_path_rate=job.spec.backbone.drop_path)
    optimizer, averaged = build(job.stage, model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    schedule, ratio = job.stage.schedule, job.stage.schedule.final_lr_ratio
    with peer_stream(job) as batches:
        for step in range(job.total_steps):
            share = lr_ratio(step, job.total_steps, job.warmup_steps, schedule.name, ratio)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            train_step(job, model, optimizer, next(batches))
            if averaged:
                averaged.update_parameters(model)
    return accuracy(job, averaged or model)


def build(stage: TrainStage, model: nn.Module) -> tuple[torch.optim.Optimizer, AveragedModel | None]:
    """AdamW without weight decay on biases, norms, tokens and positions, and the moving average of the weights."""
    config = stage.optimizer
    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=model.no_weight_decay())  # type: ignore[operator]
    optimizer = torch.optim.AdamW(groups, lr=peak_lr(config, stage.global_batch_size), betas=config.betas)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(stage.ema)) if stage.ema else None
    return optimizer, averaged


def train_step(job: PeerJob, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    images, clip = job.preprocess.normalise(batch.views["image"]), job.stage.optimizer.clip_grad_norm
    with torch.autocast("cpu", torch.bfloat16, enabled=job.stage.engine.precision == "bf16"):
        logits = model(images)
    smoothing = getattr(job.stage.task, "label_smoothing", 0.0)
    targets = soft_labels(batch, job.spec.num_classes)
    losses = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)
    optimizer.zero_grad()
    ((losses * batch.weights).sum() / batch.weights.sum().clamp(min=1)).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def soft_labels(batch: Batch, classes: int) -> Tensor:
    """Fp32 [B, K]: the label, or both labels of a mixed image."""
    own, partner = (F.one_hot(batch.targets[name], classes).float() for name in ("label", "label_mix"))
    return torch.lerp(partner, own, batch.targets["label_share"][:, None])


@contextmanager
def peer_stream(job: PeerJob) -> Iterator[TrainLoader]:
    """The stage's stream for one rank."""
    stage, size = job.stage, job.spec.backbone.image_size
    sizes = partial(size_at, total_steps=job.total_steps, base_size=size, resolution=stage.resolution, seed=job.seed)
    with TrainLoader(
        job.train,
        stage.data,
        channels=job.spec.backbone.channels,
        targets=stage.task.targets,
        views=stage.task.view_groups(),
        seed=job.seed,
        rank=0,
        world_size=1,
        global_batch_size=stage.global_batch_size,
        size_at=sizes,
    ) as loader:
        yield loader


@torch.inference_mode()
def accuracy(job: PeerJob, model: nn.Module) -> float:
    """Share of the test samples classified correctly, each counted once."""
    loader = EvalLoader(
        job.test,
        channels=job.spec.backbone.channels,
        targets=job.stage.task.targets,
        views=job.stage.task.view_groups(evaluation=True),
        size=job.spec.backbone.image_size,
        plain=job.preprocess.eval,
        rank=0,
        world_size=1,
        batch_size=BATCH_SIZE,
        loader_workers=job.stage.data.loader_workers,
    )
    model.eval()
    right = total = 0.0
    for batch in loader:
        named = model(job.preprocess.normalise(batch.views["image"])).argmax(dim=1)
        right += float(((named == batch.targets["label"]) * batch.weights).sum())
        total += float(batch.weights.sum())
    return right / total
