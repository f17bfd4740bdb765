"""A step of every task in our engine, compared with a bare loop of the same mathematics."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.bench.objectives_bare import BareStep
from pipeline.bench.step_process import on_its_own
from pipeline.bench.synthetic import CLASSES, write_shards
from pipeline.bench.tasks import task_settings, write_teacher
from pipeline.config.data import AugmentConfig, DataConfig, DatasetConfig
from pipeline.config.task import task_class
from pipeline.config.training import EngineConfig, OptimizerConfig, ResolutionConfig
from pipeline.models.bundle import Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import VARIANTS, build_backbone, build_spec
from pipeline.stages.data import stage_data
from pipeline.stages.tokenizer import stage_tokenizer
from pipeline.stream.batch import Batch
from pipeline.stream.loader import TrainLoader
from pipeline.stream.resolution import size_at
from pipeline.stream.source import Source
from pipeline.tasks.base import TaskModule
from pipeline.tasks.task import BaseTask, task_of
from pipeline.train.engine import Engine
from pipeline.train.job import Dataset
from pipeline.train.loop import Meter, TrainingStep
from pipeline.train.optim import build_optimizer, parameter_groups
from pipeline.train.teacher import MovingTeacher

MEAN, STD = (0.4, 0.4, 0.4), (0.3, 0.3, 0.3)
OPTIMIZER = OptimizerConfig(lr=1e-4)
SEED, TOTAL_STEPS = 0, 1000


@dataclass(frozen=True)
class TaskCase:
    """A task, its model and its batch size."""

    task: str
    variant: str
    batch_size: int
    image_size: int
    precision: str
    threads: int
    micro_batches: int = 1  # of our step; the bare loop uses one


@dataclass(frozen=True)
class Loop:
    """A training loop; `step` takes the number of the step."""

    step: Callable[[int], None]
    model: MiniViT


def measure(
    names: Sequence[str],
    variants: Sequence[str],
    *,
    batch_size: int | None,
    precision: str,
    threads: int,
    rounds: int,
    micro_batches: int = 1,
) -> dict[str, Any]:
    """Median seconds of a step of both, by variant and task, alternating in one process.

    `ratio` is the bare loop's seconds divided by ours, the median over rounds: 1 means that the engine costs nothing.
    `cpu_ratio` is that of CPU time, with one thread, for machines with other load. Variants with patches above 8 px
    train on 224 px, by default 16 images per step, others on 28 px, 128 images per step. With several `micro_batches`
    in our step, the ratio shows their cost: losses that couple samples encode them twice.
    """
    settings = {"precision": precision, "threads": threads, "rounds": rounds, "micro_batches": micro_batches}
    found: dict[str, Any] = {"settings": settings}
    for variant in variants:
        large = VARIANTS[variant].patch > 8
        size, batch = (224, batch_size or 16) if large else (28, batch_size or 128)
        found[variant] = {}
        for name in names:
            case = TaskCase(name, variant, batch, size, precision, threads, micro_batches)
            found[variant][name] = on_its_own(measure_case, case, rounds)
    return found


def measure_case(case: TaskCase, rounds: int) -> dict[str, Any]:
    """Run both loops in this process, as the only rank."""
    torch.set_num_threads(case.threads)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    # DeepSpeed prints on import, which would end up among the figures.
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        dist.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=0, world_size=1)
        try:
            module, batch = prepare(case, Path(scratch))
            loops = {"bare_loop": bare_loop(case, module, batch), "ours": our_loop(case, module, batch)}
            took: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
            for number in range(1 + rounds):
                for name, loop in loops.items():
                    found = seconds_of(partial(loop.step, number))
                    if number:  # the first round warms up
                        took[name].append(found)
        finally:
            dist.destroy_process_group()
    apart = steps_apart(module.model, *(loop.model for loop in loops.values()))
    return {"batch_size": case.batch_size, **compare(case, took), "steps_apart": apart}


def seconds_of(step: Callable[[], None]) -> tuple[float, float]:
    """Wall-clock seconds of a step, and CPU seconds over all threads of this process."""
    began, computed = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - began, time.process_time() - computed


def compare(case: TaskCase, took: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """Medians over rounds of the times and of the ratios."""
    result: dict[str, Any] = {}
    for name, rounds in took.items():
        step_s, cpu_s = (statistics.median(each) for each in zip(*rounds, strict=True))
        result[name] = {"step_s": step_s, "cpu_s": cpu_s, "images_per_s": case.batch_size / step_s}
    pairs = list(zip(took["bare_loop"], took["ours"], strict=True))
    for number, name in enumerate(("ratio", "cpu_ratio")):
        result[name] = statistics.median(bare[number] / ours[number] for bare, ours in pairs)
    return result


def prepare(case: TaskCase, scratch: Path) -> tuple[TaskModule, Batch]:
    """Returns the task with its model in fp32, and a batch with labels of every kind it may need."""
    size, patch = case.image_size, VARIANTS[case.variant].patch
    shards = write_shards(
        scratch / "shards", splits=[("train", case.batch_size, case.batch_size)], side=size, captions=True
    )
    preprocess = Preprocess(MEAN, STD, 3, (size, size))
    teacher = build_spec(case.variant, image_size=size, num_classes=len(CLASSES))
    write_teacher(scratch / "teacher", teacher, preprocess, CLASSES)
    settings = task_settings(case.task, size, patch, scratch / "teacher")
    task = task_of(task_class(case.task).model_validate(settings))
    config = DatasetConfig(shards=str(scratch / "shards"), mean=MEAN, std=STD)
    plain = AugmentConfig(crop="none")
    data = DataConfig(train="train", augment=plain, lanes=1, window=case.batch_size, loader_workers=0)
    train, _, classes = stage_data({"train": Dataset(config, shards)}, data, task, "bench")
    spec = model_spec(task, case, teacher, len(classes))
    tokenizer = stage_tokenizer(task, spec, train, None, scratch, "bench")
    preprocess = Preprocess(MEAN, STD, 3, (size, size), tokenizer=tokenizer)
    batch = first_batch(case, task, [source.with_tokenizer(tokenizer) for source in train], data)
    torch.manual_seed(SEED)
    return task.module(MiniViT.from_spec(spec), classes, preprocess), batch


def first_batch(case: TaskCase, task: BaseTask, train: Sequence[Source], data: DataConfig) -> Batch:
    size = case.image_size, case.image_size
    with TrainLoader(
        train,
        data,
        channels=3,
        targets=task.targets,
        views=task.view_groups(),
        seed=SEED,
        rank=0,
        world_size=1,
        global_batch_size=case.batch_size,
        size_at=partial(size_at, total_steps=1, base_size=size, resolution=ResolutionConfig(), seed=SEED),
    ) as loader:
        return next(loader)


def model_spec(task: BaseTask, case: TaskCase, teacher: ModelSpec, num_classes: int) -> ModelSpec:
    backbone = build_backbone(case.variant, image_size=case.image_size, **task.backbone_fields())
    return task.model_spec(backbone, num_classes, teacher if task.taught_by else None)


def our_loop(case: TaskCase, module: TaskModule, batch: Batch) -> Loop:
    """Steps built as in `train.worker`, on one batch."""
    module = deepcopy(module)
    settings = EngineConfig.model_validate({"precision": case.precision})
    groups = parameter_groups(module.model, OPTIMIZER)
    optimizer = build_optimizer(groups, OPTIMIZER, case.batch_size, partitioned=True, precision=case.precision)
    engine = Engine(module, optimizer, settings, clip_grad_norm=OPTIMIZER.clip_grad_norm, model=module.model)
    teacher = MovingTeacher(engine, module, TOTAL_STEPS) if module.follower else None
    step_once, meter = TrainingStep(engine, None, SEED, case.batch_size, teacher), Meter.on(engine.device, module)

    def step(number: int) -> None:
        engine.set_lr(1.0)
        assert step_once(batch, number, case.micro_batches, meter)

    return Loop(step, module.model)


def bare_loop(case: TaskCase, module: TaskModule, batch: Batch) -> Loop:
    bare = BareStep(deepcopy(module), batch, OPTIMIZER, case.precision, SEED, TOTAL_STEPS)
    return Loop(bare.step, bare.module.model)


@torch.no_grad()
def steps_apart(start: MiniViT, one: MiniViT, other: MiniViT) -> float:
    """Distance between two models trained from the same start, as a share of their distance from it.

    Almost 0 in fp32. In bf16 the two round differently.
    """
    first, a, b = (
        torch.cat([value.float().flatten() for value in model.parameters()]) for model in (start, one, other)
    )
    return float((a - b).norm() / (a - first).norm())
