"""`minivit plan`: shows what a pipeline would do."""

from __future__ import annotations

import click

from pipeline.cli.paths import UserPath


@click.command("plan")
@click.argument("config", type=UserPath())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--world-size", type=click.IntRange(min=1), help="Number of workers to plan for, instead of the config's."
)
@click.option(
    "--hardware",
    type=UserPath(),
    help="Forecast training on h100, a100, l40s, mi300x, cpu (this machine), or the hardware in a YAML file.",
)
@click.option(
    "--mtbf",
    "mtbf_h",
    type=click.FloatRange(min=0, min_open=True),
    help="Mean time between failures of a node, in hours, for the forecast.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(
    config: str,
    overrides: tuple[str, ...],
    world_size: int | None,
    hardware: str | None,
    mtbf_h: float | None,
    as_json: bool,
) -> None:
    """Show what CONFIG would do, without training.

    Prints stages, samples, steps, parameters, memory per rank and ZeRO stage, balance across ranks and planned surgery.
    With --hardware, also prints the time, data rate, checkpoints and bottleneck of each training stage.
    """
    import json

    from pipeline.config.load import load_config
    from pipeline.forecast.hardware import Machine
    from pipeline.forecast.known_hardware import find_hardware
    from pipeline.stages.planner import plan, read_statuses

    if mtbf_h is not None and hardware is None:
        raise click.UsageError("--mtbf: only applies to a forecast; add --hardware")
    pipeline = load_config(config, overrides)
    machine = Machine(hardware, find_hardware(hardware), mtbf_h) if hardware else None
    result = plan(pipeline, world_size, read_statuses(pipeline), machine)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=1))
        return
    from rich.console import Console

    from pipeline.stages.plan_tables import render

    Console().print(render(result))
