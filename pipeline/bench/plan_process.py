"""Trains a stage's model for a few steps on one rank, with the engine of `train.worker`, and measures the steps."""

from __future__ import annotations

import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.bench.processes import peak_bytes
from pipeline.config.train_stage import TrainStage
from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.stream.batch import Batch
from pipeline.stream.order import step_shares
from pipeline.tasks.task import task_of
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine, import_deepspeed
from pipeline.train.loop import Meter, TrainingStep
from pipeline.train.optim import build_optimizer, parameter_groups
from pipeline.train.step_shapes import micro_batches_at

WARM_UP_STEPS = 2  # the optimiser's state exists from the second step on
SEED = 0


@dataclass(frozen=True)
class MeasuredRank:
    """The fastest step of one rank, in seconds, since disturbances only make steps slower; memory in bytes."""

    wall_s: float
    cpu_s: float  # over all threads of the process
    peak_bytes: int
    bytes_before: int  # of the process with its libraries, before it built the model


def measure_rank(
    stage: TrainStage, spec: ModelSpec, rank: int, world_size: int, store: str, steps: int
) -> MeasuredRank:
    """Join `world_size` ranks, which meet in the file `store`, and train on a random batch with one thread."""
    torch.set_num_threads(1)
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_SIZE": str(world_size)}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", **ranks, **here}
    with redirect_stdout(sys.stderr):  # DeepSpeed prints on import, which would end up among the figures
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        try:
            import_deepspeed()
            before = peak_bytes()
            took = _train(stage, spec, world_size, steps)
            dist.barrier()
        finally:
            dist.destroy_process_group()
    wall_s, cpu_s = (min(each) for each in zip(*took, strict=True))
    return MeasuredRank(wall_s, cpu_s, peak_bytes(), before)


def _train(stage: TrainStage, spec: ModelSpec, world_size: int, steps: int) -> list[tuple[float, float]]:
    """Wall-clock and CPU seconds of each step after the first ones."""
    torch.manual_seed(SEED)
    backbone = spec.backbone
    model = MiniViT.from_spec(spec)
    half = (0.5,) * backbone.channels
    preprocess = Preprocess(half, half, backbone.channels, backbone.image_size)
    task = task_of(stage.task).module(model, [str(label) for label in range(spec.num_classes)], preprocess)
    model.transformer.recompute_activations(stage.engine.activation_checkpointing)
    groups = parameter_groups(model, stage.optimizer)
    partitioned = stage.engine.zero_stage > 0
    optimizer = build_optimizer(
        groups, stage.optimizer, stage.global_batch_size, partitioned=partitioned, precision=stage.engine.precision
    )
    engine = Engine(task, optimizer, stage.engine, clip_grad_norm=stage.optimizer.clip_grad_norm, model=model)
    ema = ShardedEMA(engine.flats, stage.ema) if stage.ema else None
    _, share = step_shares(stage.data.lanes, stage.global_batch_size, world_size)
    step_once, meter = TrainingStep(engine, ema, SEED, share), Meter.on(engine.device, task)
    micro_batches = micro_batches_at(backbone.image_size, backbone.patch, backbone, share, stage.micro_batch_size)
    batch, took = random_batch(spec, share), []
    for number in range(WARM_UP_STEPS + steps):
        dist.barrier()
        began, computed = time.perf_counter(), time.process_time()
        engine.set_lr(1.0)
        assert step_once(batch, number, micro_batches, meter)
        took.append((time.perf_counter() - began, time.process_time() - computed))
    return took[WARM_UP_STEPS:]


def random_batch(spec: ModelSpec, samples: int) -> Batch:
    """A batch of noise with random labels, in the form that the loader gives to classifiers."""
    backbone = spec.backbone
    images = torch.randint(256, (samples, backbone.channels, *backbone.image_size), dtype=torch.uint8)
    labels = torch.randint(spec.num_classes, (samples,))
    targets = {"label": labels, "label_mix": labels, "label_share": torch.ones(samples)}
    weights, slots = torch.ones(samples), torch.arange(samples)
    return Batch({"image": images}, targets, weights, slots, [""] * samples, 0)
