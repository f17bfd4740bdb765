"""`minivit run`: runs or resumes a pipeline."""

from __future__ import annotations

import click

from pipeline.cli.paths import UserPath


@click.command("run")
@click.argument("config", type=UserPath())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(config: str, overrides: tuple[str, ...]) -> None:
    """Run the pipeline in CONFIG, or resume it where it stopped.

    Override settings by their dotted paths: minivit run configs/quickstart.yaml cluster.workers=1 name=try
    """
    from pipeline.config.load import load_config

    pipeline = load_config(config, overrides)
    from pipeline.stages.run import run_pipeline

    run_pipeline(pipeline)
