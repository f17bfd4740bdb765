"""`minivit bench`: measurements against peers."""

from __future__ import annotations

import click

from pipeline.cli import bench_data, bench_state, bench_training


@click.group("bench")
def group() -> None:
    """Measure this pipeline against its peers; every figure of RESULTS.md comes from here."""


for command in (
    bench_training.overhead,
    bench_training.step,
    bench_training.multiscale,
    bench_training.masked,
    bench_training.objectives,
    bench_training.parity,
    bench_training.plan,
    bench_data.loader,
    bench_data.memory,
    bench_data.resume,
    bench_data.scale,
    bench_data.fuzz,
    bench_data.shuffle,
    bench_state.surgery,
    bench_state.checkpoint,
    bench_state.recovery,
    bench_state.chaos,
):
    group.add_command(command)
