"""`minivit report`: the HTML page of a run."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.paths import UserPath


@click.command("report")
@click.argument("run", type=UserPath(exists=True, file_okay=False, path_type=Path))
def command(run: Path) -> None:
    """Write report.html into the folder RUN, finished or not, and print where it is."""
    from pipeline.report.page import write_report

    click.echo(str(write_report(run)))
