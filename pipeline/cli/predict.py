"""`minivit predict`: the likely classes of images."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.paths import UserPath


@click.command("predict")
@click.argument("model", type=UserPath(path_type=Path), metavar="RUN[/STAGE]|EXPORT")
@click.argument("images", nargs=-1, required=True, type=UserPath(path_type=Path))
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="Classes to show per image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(model: Path, images: tuple[Path, ...], top: int, as_json: bool) -> None:
    """Print the most likely classes of each of IMAGES, with their probabilities."""
    import json

    from pipeline import load_model

    predictions = load_model(model).predict(list(images), top_k=top)
    if as_json:
        rows = [{"image": str(image), "classes": dict(found)} for image, found in zip(images, predictions, strict=True)]
        click.echo(json.dumps(rows, indent=1))
        return
    for image, found in zip(images, predictions, strict=True):
        click.echo(f"{image}")
        for name, probability in found:
            click.echo(f"  {probability:6.1%}  {name}")
