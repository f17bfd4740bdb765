"""The forecast in a plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from pipeline.forecast.hardware import Machine
from pipeline.forecast.loading import BYTE_S, PIXEL_S, SAMPLE_S, UNKNOWN_BYTES
from pipeline.forecast.saving import SAVE_BYTES_PER_S
from pipeline.forecast.stage import RESTART_S, Forecast
from pipeline.stages.plan import StagePlan, TrainingPlan
from pipeline.stages.tables import UNKNOWN, figure_table, scaled, spaced

Row = tuple[str, str, TrainingPlan, Forecast]
SPANS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


def forecast_tables(trainings: list[tuple[StagePlan, TrainingPlan]], machine: Machine) -> Iterator[Table | Text]:
    """Step times, data and memory, checkpoints and failures of each training branch, then the assumptions."""
    rows = [
        (stage.id, model.spec["backbone"]["variant"], training, model.forecast)
        for stage, training in trainings
        for model in training.models
        if model.forecast
    ]
    yield spaced(_times(rows, machine))
    yield spaced(_needs(rows))
    yield spaced(_checkpoints(rows, machine.mtbf_h is not None))
    for stage_id, _, _, found in rows:
        if not found.fits:
            fixes = " or ".join(found.remedies) or "more ranks, as no micro_batch_size or engine.zero_stage is enough"
            yield Text(f"{stage_id} does not fit in memory; use {fixes}.\n")
    yield Text("\n".join(["Assumptions", *(f"  {line}" for line in assumptions(machine)), ""]))


def _times(rows: list[Row], machine: Machine) -> Table:
    columns = ("stage", "model", "ranks", "nodes", "step", "compute", "comm.", "exposed", "data", "images/s", "time")
    table = figure_table(f"Forecast for {machine.name} (time of a step and its parts)", *columns, "limited by")
    for stage_id, variant, training, found in rows:
        step = found.step
        parts = (found.step_s, step.compute_s, step.communication_s, step.exposed_s, step.data_wait_s)
        table.add_row(
            stage_id,
            variant,
            str(training.world_size),
            str(found.nodes),
            *map(span, parts),
            f"{found.images_per_s:,.0f}",
            UNKNOWN if found.days is None else span(found.days * 86_400),
            found.limited_by,
        )
    return table


def _needs(rows: list[Row]) -> Table:
    columns = ("stage", "model", "loader cores", "decode/image", "read rate", "memory/rank", "limit")
    table = figure_table("Needs of a node whose steps never wait for data, and memory with overhead", *columns)
    for stage_id, variant, _, found in rows:
        table.add_row(
            stage_id,
            variant,
            f"{found.loader_cores_per_node:.2g}",
            span(found.decode_s),
            f"{scaled(found.storage_bytes_per_s_per_node)}B/s",
            f"{found.memory_bytes / 2**30:.3g} GiB",
            f"{found.memory_limit_bytes / 2**30:.3g} GiB",
        )
    return table


def _checkpoints(rows: list[Row], with_failures: bool) -> Table:
    columns = ["stage", "model", "size", "write time", "wait"]
    if with_failures:
        columns += ["failures", "recovery", "goodput", "best goodput", "Young", "time"]
    table = figure_table("Checkpoints" + " and failures" * with_failures, *columns)
    for stage_id, variant, _, found in rows:
        cells = [f"{scaled(found.checkpoint_bytes)}B", span(found.save_s), span(found.save_wait_s)]
        if with_failures:
            cells += _failure_cells(found)
        table.add_row(stage_id, variant, *cells)
    return table


def _failure_cells(found: Forecast) -> list[str]:
    failures = found.failures
    if failures is None:
        return [UNKNOWN] * 6
    return [
        f"every {span(failures.mtbf_s)}",
        span(failures.recovery_s),
        f"{failures.goodput:.2%} ({span(failures.interval_s)})",
        f"{failures.best_goodput:.2%} ({span(failures.best_interval_s)})",
        span(failures.young_s),
        UNKNOWN if found.days_with_failures is None else span(found.days_with_failures * 86_400),
    ]


def assumptions(machine: Machine) -> list[str]:
    """The assumptions of the forecast, one per line."""
    hardware = machine.hardware
    node = f"{hardware.gpus_per_node} ranks per node, each with {hardware.cores_per_gpu} cores and"
    peaks = f"{hardware.bf16_tflops:,.4g} TFLOP/s in bf16, {hardware.fp32_tflops:,.4g} in fp32"
    passes = "six passes over memory" if hardware.value_ns is None else f"{hardware.value_ns:.3g} ns"
    scores = f"{hardware.score_ns:.3g} ns per attention score" if hardware.score_ns else "nothing for attention scores"
    links = f"{hardware.link_gb_per_s:g} GB/s within a node and {hardware.network_gb_per_s:g} GB/s between nodes"
    hidden = "during the backward pass with ZeRO-2 and ZeRO-3" if hardware.overlaps else "after the backward pass"
    decoding = f"{1e3 * SAMPLE_S:g} ms, {1e9 * BYTE_S:g} ns per byte and {1e9 * PIXEL_S:g} ns per pixel of its views"
    return [
        f"{machine.name}: {hardware.source}.",
        f"{node} {hardware.memory_gib:.3g} GiB of memory at {hardware.memory_gb_per_s:,g} GB/s.",
        f"Matrix products reach {hardware.achieved_flops:.0%} of {peaks}.",
        f"Norms and activations take {passes} per value kept for the backward pass, and {scores}.",
        f"Launching the kernels of a layer takes {hardware.layer_us:g} µs.",
        f"Collectives reach {hardware.achieved_bandwidth:.0%} of {links}, with {hardware.latency_us:g} µs per hop.",
        f"Gradients are reduced {hidden}.",
        f"Decoding an image takes a core {decoding}; images of unknown size count as {UNKNOWN_BYTES / 1e3:g} kB.",
        f"A node reads and writes {hardware.storage_gb_per_s:g} GB/s; a rank saves {SAVE_BYTES_PER_S / 1e9:g} GB/s.",
        f"A GPU's state is copied to its host at {hardware.host_copy_gb_per_s:g} GB/s before it is saved.",
        f"Recovery takes {RESTART_S:g} s, reads the checkpoint and repeats the steps of one save, on a spare node.",
        f"Libraries and communication take {hardware.overhead_gib:g} GiB of a rank's memory.",
    ]


def span(seconds: float) -> str:
    """`1.5 h`, `23 ms`: three digits in the largest unit that is not above the span."""
    for unit_s, name in SPANS:
        if seconds >= unit_s:
            return f"{seconds / unit_s:.3g} {name}"
    return f"{seconds * 1e3:.2g} ms" if seconds else "0"
