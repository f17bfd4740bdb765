"""`minivit bench`: measurements against peers."""

from __future__ import annotations

import click


@click.group("bench")
def group() -> None:
    """Measure this pipeline against its peers; every figure of RESULTS.md comes from here."""


@group.command("overhead")
@click.argument("config", type=click.Path(), default="configs/quickstart.yaml")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", default="pretrain", show_default=True, help="Training stage whose loop is measured.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Pairs of measurements.")
@click.option("--steps", default=40, show_default=True, type=click.IntRange(min=1), help="Steps of each loop a round.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def overhead(config: str, overrides: tuple[str, ...], stage: str, rounds: int, steps: int, as_json: bool) -> None:
    """Images/s of a stage's own loop (engine, stream, tracking) against a bare loop of the same model."""
    import json

    from pipeline.bench.overhead import measure
    from pipeline.config.load import load_config

    result = measure(load_config(config, overrides), stage, rounds=rounds, steps=steps)
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    for name in ("ours", "bare_loop"):
        click.echo(f"{name:10} {result[name]['images_per_s']:10,.0f} images/s")
    click.echo(f"{'ratio':10} {result['ratio']:10.2f}   ({result['stage']} on {result['workers']} workers)")
