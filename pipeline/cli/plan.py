"""`minivit plan`: what a pipeline would do."""

from __future__ import annotations

import click

from pipeline.cli.paths import UserPath


@click.command("plan")
@click.argument("config", type=UserPath())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--world-size", type=click.IntRange(min=1), help="Number of workers to plan for, in place of the config's own."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(config: str, overrides: tuple[str, ...], world_size: int | None, as_json: bool) -> None:
    """Show what CONFIG would do, without training.

    Prints stages, samples, steps, parameters, memory per rank and ZeRO stage, balance over ranks and the surgeries
    ahead.
    """
    import json

    from pipeline.config.load import load_config
    from pipeline.stages.planner import plan, read_statuses

    pipeline = load_config(config, overrides)
    result = plan(pipeline, world_size, read_statuses(pipeline))
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=1))
        return
    from rich.console import Console

    from pipeline.stages.plan_tables import render

    Console().print(render(result))
