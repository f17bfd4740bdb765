"""`minivit bench`: measurements against peers."""

from __future__ import annotations

import click

from pipeline.cli import bench_data, bench_state, bench_training


@click.group("bench")
def group() -> None:
    """Measure this pipeline against its peers; RESULTS.md lists the results."""


for module in (bench_data, bench_state, bench_training):
    for command in vars(module).values():
        if isinstance(command, click.Command):
            group.add_command(command)
