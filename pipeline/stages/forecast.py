"""The forecast of a training branch, from its stage and what the plan knows about its model and data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.config.train_stage import TrainStage
from pipeline.config.training import LARGEST_BUCKET
from pipeline.forecast.hardware import FP32, Hardware
from pipeline.forecast.loading import UNKNOWN_BYTES, SampleCost
from pipeline.forecast.stage import Forecast, Job, forecast
from pipeline.models.costs import frozen_parameters
from pipeline.models.model_costs import count_parameters
from pipeline.stages.findings import Model
from pipeline.stages.memory import MOMENTS, RankMemory, rank_memory, value_bytes
from pipeline.stages.step_work import kept_bytes, shape_shares, step_work
from pipeline.tasks.task import task_of

UNKNOWN_STEPS = 1000  # to draw image sizes for, if the stage is measured in epochs of data that does not exist yet
KEPT_ALIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered for the next pass, DeepSpeed's default
COPIES_OF_ZERO_3 = 2  # of a bucket: joined weights are copied into their tensors, gradients into a flat one


class Amounts(NamedTuple):
    """What the plan knows about a stage's data and ranks; None if the data set does not exist yet."""

    ranks: int
    share: int  # most samples of a step on any rank
    steps: int | None
    samples_per_epoch: int | None
    mean_sample_bytes: float | None


def forecast_stage(
    model: Model, stage: TrainStage, amounts: Amounts, hardware: Hardware, mtbf_h: float | None
) -> Forecast:
    """The forecast of a stage that trains `model`; `mtbf_h` is the mean time between a node's failures in hours."""
    spec, parameters = model.spec, count_parameters(model.spec)
    trained = parameters - frozen_parameters(spec.backbone, stage.optimizer.freeze)
    memory = _memory(model, stage, amounts)[stage.engine.zero_stage]
    shapes = list(shape_shares(model, stage, amounts.steps or UNKNOWN_STEPS))
    pixels = sum(
        share * count * height * width
        for (size, _), share in shapes
        for count, (height, width) in task_of(stage.task).seen(size)
    )
    every = stage.checkpoint.every
    known = every.unit != "epochs" or amounts.samples_per_epoch is not None
    minutes = stage.checkpoint.every_minutes
    job = Job(
        ranks=amounts.ranks,
        global_batch_size=stage.global_batch_size,
        zero_stage=stage.engine.zero_stage,
        trained=trained,
        parameters=parameters,
        bucket=LARGEST_BUCKET,
        loader_workers=stage.data.loader_workers,
        sample=SampleCost(amounts.mean_sample_bytes or UNKNOWN_BYTES, pixels),
        checkpoint_bytes=checkpoint_bytes(stage, trained, parameters),
        steps=amounts.steps,
        save_every_s=None if minutes is None else 60 * minutes,
        save_every_steps=every.steps(amounts.samples_per_epoch or 0, stage.global_batch_size) if known else None,
    )
    needed = rank_bytes(model, stage, amounts, hardware)
    return forecast(
        job,
        [(step_work(model, stage, amounts.share, shape, memory), share) for shape, share in shapes],
        hardware,
        memory_bytes=needed,
        remedies=[] if needed <= hardware.memory_bytes else list(_remedies(model, stage, amounts, hardware)),
        mtbf_h=mtbf_h,
    )


def checkpoint_bytes(stage: TrainStage, trained: int, parameters: int) -> int:
    """Size of a checkpoint: fp32 weights, moments and averages, and frozen weights in the engine's precision."""
    tensors = 1 + MOMENTS[stage.optimizer.name] + bool(stage.ema) + task_of(stage.task).follows
    return trained * FP32 * tensors + (parameters - trained) * value_bytes(stage.engine)


def rank_bytes(model: Model, stage: TrainStage, amounts: Amounts, hardware: Hardware) -> int:
    """Peak memory of a rank: the plan's estimate plus reduction buffers, gathered weights and overhead."""
    zero, parameters = stage.engine.zero_stage, count_parameters(model.spec)
    buckets = 2 if hardware.overlaps and zero >= 2 and amounts.ranks > 1 else 1  # one fills while the other is reduced
    extra = buckets * min(parameters, LARGEST_BUCKET) * FP32
    if zero == 3:
        extra += min(parameters, KEPT_ALIVE) * value_bytes(stage.engine)
        extra += COPIES_OF_ZERO_3 * min(parameters, LARGEST_BUCKET) * FP32
    return _memory(model, stage, amounts)[zero].total + extra + int(hardware.overhead_gib * 2**30)


def _memory(model: Model, stage: TrainStage, amounts: Amounts) -> list[RankMemory]:
    parameters = count_parameters(model.spec)
    frozen = frozen_parameters(model.spec.backbone, stage.optimizer.freeze)
    activations, of_teacher = kept_bytes(model, stage, amounts.share, amounts.ranks)
    return rank_memory(parameters, stage, amounts.ranks, activations, of_teacher, frozen)


def _remedies(model: Model, stage: TrainStage, amounts: Amounts, hardware: Hardware) -> Iterator[str]:
    """Settings that would make a stage fit, each on its own; both together if neither is enough."""

    def fits(changed: TrainStage) -> bool:
        return rank_bytes(model, changed, amounts, hardware) <= hardware.memory_bytes

    micro_batch = next((size for size in _smaller(stage, amounts.share) if fits(_with(stage, size))), None)
    if micro_batch:
        yield f"micro_batch_size: {micro_batch}"
    zeros = range(stage.engine.zero_stage + 1, 4)
    zero = next((zero for zero in zeros if fits(_with(stage, zero=zero))), None)
    if zero:
        yield f"engine.zero_stage: {zero}"
    if micro_batch or zero:
        return
    pairs = ((size, zero) for zero in zeros for size in _smaller(stage, amounts.share))
    both = next((pair for pair in pairs if fits(_with(stage, *pair))), None)
    if both:
        yield f"micro_batch_size: {both[0]} with engine.zero_stage: {both[1]}"


def _smaller(stage: TrainStage, share: int) -> list[int]:
    """Smaller micro-batches, largest first: the rank's share divided by two, three, four, and so on."""
    now = min(stage.micro_batch_size or share, share)
    parts = range(2, share + 1)
    return list(dict.fromkeys(size for part in parts if (size := -(-share // part)) < now))


def _with(stage: TrainStage, micro_batch: int | None = None, zero: int | None = None) -> TrainStage:
    engine = stage.engine if zero is None else stage.engine.model_copy(update={"zero_stage": zero})
    return stage.model_copy(update={"engine": engine, "micro_batch_size": micro_batch or stage.micro_batch_size})
