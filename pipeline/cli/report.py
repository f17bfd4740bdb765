"""`minivit report`: the HTML page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.paths import UserPath


@click.command("report")
@click.argument("run", type=UserPath(exists=True, file_okay=False, path_type=Path))
def command(run: Path) -> None:
    """Write report.html to the folder of RUN, which need not have finished, and print its path."""
    from pipeline.report.page import write_report

    click.echo(str(write_report(run)))
