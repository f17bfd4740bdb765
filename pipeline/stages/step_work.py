"""What a training step computes and keeps on the rank with the most samples, from the models' costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import partial

from pipeline.config.train_stage import TrainStage
from pipeline.forecast.compute import BACKWARD, Work
from pipeline.models.costs import attention_scores, backbone_flops, frozen_layers, layer_flops, layer_values
from pipeline.models.model_costs import forward_flops
from pipeline.models.spec import Pair, whole_patches
from pipeline.stages.findings import Model
from pipeline.stages.memory import RankMemory, activation_bytes, head_bytes, teacher_bytes, value_bytes
from pipeline.stream.resolution import size_at
from pipeline.tasks.task import task_of
from pipeline.train.step_shapes import micro_batches_at, patch_at, step_shapes

Shape = tuple[Pair, Pair]  # image size and patch, each (height, width) in pixels
STEPS_LOOKED_AT = 1000


def kept_bytes(model: Model, stage: TrainStage, share: int, ranks: int) -> tuple[int, int]:
    """Peak bytes of activations, and of the teacher's weights and activations, over all shapes of a stage's steps.

    `share` is the number of samples of a step on the rank with the most.
    """
    task, spec, frozen = task_of(stage.task), model.spec, frozen_layers(model.spec.backbone, stage.optimizer.freeze)
    activations = of_teacher = 0
    for size, patch in step_shapes(stage, spec.backbone):
        samples = math.ceil(share / _micro_batches(model, stage, share, (size, patch)))
        tokens = samples * task.encoder_tokens(spec, size, patch)
        encoder = activation_bytes(spec.backbone, tokens, stage.engine, frozen)
        activations = max(activations, encoder + _head_bytes(model, stage, samples, (size, patch)))
        if task.follows:  # the teacher sees the first group of views
            of_teacher = max(of_teacher, teacher_bytes(spec, samples * task.seen(size)[0][0], stage.engine))
        if model.teacher:
            among = ranks if stage.task.shards_teacher else 1
            of_teacher = max(of_teacher, teacher_bytes(model.teacher.spec, samples, stage.engine, among))
    return activations, of_teacher


def shape_shares(model: Model, stage: TrainStage, steps: int) -> Iterator[tuple[Shape, float]]:
    """The shapes of a stage's steps, each with its share of the steps, of which at most a thousand are looked at."""
    backbone, looked_at = model.spec.backbone, min(steps, STEPS_LOOKED_AT)
    size_of = partial(size_at, total_steps=steps, base_size=backbone.image_size, resolution=stage.resolution, seed=0)
    each = (step * steps // looked_at for step in range(looked_at))
    counts = Counter((size_of(step), patch_at(step, backbone.patch, stage.resolution, seed=0)) for step in each)
    for shape, count in counts.items():
        yield shape, count / looked_at


def step_work(model: Model, stage: TrainStage, share: int, shape: Shape, memory: RankMemory) -> Work:
    """A step on images of a shape; `memory` is that of the configured ZeRO stage."""
    task, spec, backbone, (size, patch) = task_of(stage.task), model.spec, model.spec.backbone, shape
    micro_batches, width = _micro_batches(model, stage, share, shape), value_bytes(stage.engine)
    frozen = frozen_layers(backbone, stage.optimizer.freeze)
    forward = task.forward_flops(spec, size, patch)
    unlearned = sum(count * backbone_flops(backbone, seen, patch) for count, seen in task.seen(size))
    learned = max(forward - frozen / backbone.depth * unlearned, 0)
    again = _computed_again(model, stage, size, patch)
    tokens = share * task.encoder_tokens(spec, size, patch)
    encoder = tokens * (backbone.depth - frozen) * layer_values(backbone)
    values = encoder * (1 + again / (1 + BACKWARD)) + _head_bytes(model, stage, share, shape) / width
    extra_flops, extra_values = _teachers(model, stage, shape)
    passes = 2 if task.coupled and micro_batches > 1 else 1  # gradient caching (Gao et al. 2021)
    return Work(
        samples=share,
        micro_batches=micro_batches,
        layers=backbone.depth,
        forward_flops=share * (passes * forward + extra_flops),
        backward_flops=share * (BACKWARD + again) * learned,
        kept_values=values * (BACKWARD + passes) / (BACKWARD + 1) + share * extra_values,
        scores=share * sum(_scores(model, stage, shape)),
        state_bytes=memory.weights + memory.gradients + memory.optimizer + memory.ema,
        width=width,
    )


def _scores(model: Model, stage: TrainStage, shape: Shape) -> Iterator[float]:
    """Attention scores of each group of views of a sample; masked encoders see a part of the patches."""
    backbone, task, (size, patch) = model.spec.backbone, task_of(stage.task), shape
    grids = [(count, whole_patches(seen, patch)) for count, seen in task.seen(size)]
    prefix = backbone.tokens.num_prefix
    tokens = sum(count * (math.prod(grid) + prefix) for count, grid in grids)
    visible = task.encoder_tokens(model.spec, size, patch) / tokens
    for count, grid in grids:
        yield count * attention_scores(backbone, round(visible * (math.prod(grid) + prefix)), grid)


def _computed_again(model: Model, stage: TrainStage, size: Pair, patch: Pair) -> float:
    """Share of the forward pass that activation checkpointing repeats."""
    backbone = model.spec.backbone
    length = math.prod(whole_patches(size, patch)) + backbone.tokens.num_prefix
    feed_forward = 4 * length * backbone.embed_dim * backbone.mlp_dim / layer_flops(backbone, length, length)
    return {"none": 0.0, "selective": feed_forward, "full": 1.0}[stage.engine.activation_checkpointing]


def _teachers(model: Model, stage: TrainStage, shape: Shape) -> tuple[float, float]:
    """FLOPs per sample of teachers' forward passes, and values that these pass over, in units of kept values."""
    task, (size, patch) = task_of(stage.task), shape
    flops = values = 0.0
    if task.follows:
        count, seen = task.seen(size)[0]
        tokens = count * (math.prod(whole_patches(seen, patch)) + model.spec.backbone.tokens.num_prefix)
        flops += count * forward_flops(model.spec, seen, patch)
        values += tokens * model.spec.backbone.depth * layer_values(model.spec.backbone)
    if model.teacher:
        teacher = model.teacher.spec.backbone
        flops += forward_flops(model.teacher.spec)
        values += (teacher.num_patches + teacher.tokens.num_prefix) * teacher.depth * layer_values(teacher)
    return flops, values / (1 + BACKWARD)


def _micro_batches(model: Model, stage: TrainStage, share: int, shape: Shape) -> int:
    views = stage.task.view_groups()
    return micro_batches_at(*shape, model.spec.backbone, share, stage.micro_batch_size, views)


def _head_bytes(model: Model, stage: TrainStage, samples: int, shape: Shape) -> int:
    (size, patch), task = shape, task_of(stage.task)
    return sum(
        head_bytes(model.spec, samples * count, whole_patches(seen, patch), stage.engine)
        for count, seen in task.seen(size)
    )
