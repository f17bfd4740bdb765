"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.stages.forecast_tables import forecast_tables
from pipeline.stages.plan import DatasetPlan, ModelPlan, Plan, StagePlan, TrainingPlan
from pipeline.stages.tables import UNKNOWN, figure_table, scaled, sides, spaced

STATES = {
    None: "to run",
    "finished": "finished, skipped",
    "running": "resumes",
    "interrupted": "resumes",
    "failed": "runs again",
}


def render(plan: Plan) -> RenderableType:
    """Data, stages, models, memory, surgery and notes, for a rich console."""
    parts: list[RenderableType] = [_datasets(plan.datasets), _stages(plan.stages)]
    trainings = [(stage, stage.training) for stage in plan.stages if stage.training]
    if trainings:
        parts += [_models(trainings), *_teachers(trainings), _memory(trainings), _balance(trainings)]
    if trainings and plan.machine:
        parts += forecast_tables(trainings, plan.machine)
    for heading, lines in (("Planned surgery", list(_surgeries(trainings))), ("Notes", plan.notes)):
        if lines:
            parts.append(Text("\n".join([heading, *(f"  {line}" for line in lines), ""])))
    return Group(*parts)


def _datasets(datasets: list[DatasetPlan]) -> Table:
    table = figure_table("Data", "name", "state", "shards", "samples", "per shard", "size", "classes")
    for data in datasets:
        least_most = data.samples_per_shard
        table.add_row(
            data.name,
            data.state,
            _count(data.num_shards),
            _count(data.samples),
            _range(least_most) if least_most else UNKNOWN,
            UNKNOWN if data.bytes is None else f"{scaled(data.bytes)}B",
            _count(data.classes),
        )
    return spaced(table)


def _stages(stages: list[StagePlan]) -> Table:
    table = figure_table("Stages", "id", "type", "state", "px", "length", "steps", "epochs", "samples")
    for stage in stages:
        training = stage.training
        now = "runs again" if stage.runs_again else STATES.get(stage.status, stage.status or "")
        row = [stage.id, stage.type, now]
        if training:
            epochs = UNKNOWN if training.epochs is None else f"{training.epochs:.4g}"
            row += [
                " ".join(dict.fromkeys(map(sides, training.image_sizes))),
                training.duration,
                _count(training.steps),
                epochs,
                _count(training.samples),
            ]
        elif stage.type in ("evaluate", "probe"):
            row += ["", "", "", "1", _count(stage.evaluates)]
        table.add_row(*row)
    return spaced(table)


def _models(trainings: list[tuple[StagePlan, TrainingPlan]]) -> Table:
    table = figure_table(
        "Models", "stage", "model", "starts from", "patch", "grid", "parameters", "heads", "GFLOPs/image"
    )
    for stage, training in trainings:
        for model in training.models:
            table.add_row(
                stage.id,
                model.spec["backbone"]["variant"],
                model.starts_from or "random",
                sides(model.spec["backbone"]["patch"]),
                sides(model.spec["backbone"]["grid"]),
                _parameters(model),
                "\n".join(f"{name} {_count(number)}" for name, number in model.head_parameters.items()),
                _least_and_most(model),
            )
    return spaced(table)


def _teachers(trainings: list[tuple[StagePlan, TrainingPlan]]) -> Iterator[Table]:
    """The teachers that stages learn from, and the cost of each."""
    taught = [(stage.id, model.teacher) for stage, training in trainings for model in training.models if model.teacher]
    if taught:
        columns = ("stage", "teacher", "model", "px", "parameters", "GFLOPs/image")
        table = figure_table("Teachers (GFLOPs add to those of the model)", *columns)
        for stage_id, teacher in taught:
            table.add_row(
                stage_id,
                teacher.reference,
                teacher.variant,
                sides(teacher.image_size),
                _count(teacher.parameters),
                f"{teacher.gflops:.3g}",
            )
        yield spaced(table)


def _memory(trainings: list[tuple[StagePlan, TrainingPlan]]) -> Table:
    zeros = [f"ZeRO {stage}" for stage in range(4)]
    table = figure_table(
        "Memory per rank, including activations and teachers (*: as configured)",
        "stage",
        "model",
        "ranks",
        *zeros,
        "activations",
    )
    for stage, training in trainings:
        for model in training.models:
            cells = [
                f"{scaled(memory.total)}B{'*' if memory.zero_stage == training.zero_stage else ''}"
                for memory in model.memory
            ]
            activations = f"{scaled(model.memory[0].activations)}B"
            table.add_row(stage.id, model.spec["backbone"]["variant"], str(training.world_size), *cells, activations)
    return spaced(table)


def _balance(trainings: list[tuple[StagePlan, TrainingPlan]]) -> Table:
    columns = ("stage", "batch", "lanes", "left out", "lanes/rank", "batch/rank", "epoch/rank", "buffer/rank")
    table = figure_table("Balance across ranks, in samples (left out: per epoch, different ones each time)", *columns)
    for stage, training in trainings:
        shares = training.balance
        table.add_row(
            stage.id,
            _count(training.global_batch_size),
            _count(training.lanes),
            _count(training.left_out_per_epoch),
            _range(shares.lanes),
            _range(shares.step_samples),
            _range(shares.epoch_samples) if shares.epoch_samples else UNKNOWN,
            UNKNOWN if shares.window_bytes is None else f"{scaled(shares.window_bytes)}B",
        )
    return spaced(table)


def _surgeries(trainings: list[tuple[StagePlan, TrainingPlan]]) -> Iterator[str]:
    for stage, training in trainings:
        for model in training.models:
            if model.starts_from:
                changes = "; ".join(model.surgeries) or "none, the weights fit as they are"
                yield f"{model.starts_from} -> {stage.id}: {changes}"


def _least_and_most(model: ModelPlan) -> str:
    least, most = min(model.gflops.values()), max(model.gflops.values())
    return f"{least:.3g}" if least == most else f"{least:.3g} - {most:.3g}"


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _parameters(model: ModelPlan) -> str:
    frozen = f"\n{_count(model.frozen_parameters)} frozen" if model.frozen_parameters else ""
    return _count(model.parameters) + frozen


def _range(least_most: tuple[int, int]) -> str:
    least, most = least_most
    return f"{least:,}" if least == most else f"{least:,} - {most:,}"
