"""`minivit predict`: what a finished model says of images."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.paths import UserPath


@click.command("predict")
@click.argument("model", type=UserPath(path_type=Path), metavar="RUN[/STAGE]|EXPORT")
@click.argument("images", nargs=-1, required=True, type=UserPath(path_type=Path))
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="Names to show per image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(model: Path, images: tuple[Path, ...], top: int, as_json: bool) -> None:
    """Print what the model sees in each of IMAGES: likely classes, or the share of the pixels that each class has."""
    import json

    from pipeline import load_model

    seen = load_model(model).summarise(list(images), top)
    if as_json:
        rows = [{"image": str(image), "classes": found} for image, found in zip(images, seen, strict=True)]
        click.echo(json.dumps(rows, indent=1))
        return
    for image, found in zip(images, seen, strict=True):
        click.echo(f"{image}")
        for name, share in found.items():
            click.echo(f"  {share:6.1%}  {name}")
