"""`minivit predict`: a finished model's predictions for images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli.paths import PATTERN, UserPath


@click.command("predict")
@click.argument("model", type=UserPath(path_type=Path), metavar="RUN[/STAGE]|EXPORT")
@click.argument("images", nargs=-1, required=True, type=PATTERN, metavar="IMAGES|FOLDER|SHARDS...")
@click.option("--out", type=UserPath(path_type=Path), help="Folder for predictions.jsonl, pictures and maps.")
@click.option("--coco", is_flag=True, help="With --out: also write boxes as COCO results, coco_results.json.")
@click.option(
    "--coco-ids",
    type=UserPath(path_type=Path),
    metavar="FILE",
    help="COCO annotation file with the image and category ids for --coco; default: those in the shards' JSON.",
)
@click.option(
    "--top", default=5, show_default=True, type=click.IntRange(min=1), help="Number of classes to show per image."
)
@click.option(
    "--option", "given", multiple=True, metavar="NAME=YAML", help="With --out: an option of the task's predictions."
)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(min=1), help="Images per batch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    model: Path,
    images: tuple[str, ...],
    out: Path | None,
    coco: bool,
    coco_ids: Path | None,
    top: int,
    given: tuple[str, ...],
    batch_size: int,
    as_json: bool,
) -> None:
    """Predict images: files, folders (including subfolders), or shards.

    Without --out, prints the most likely classes, or each class's share of the pixels. With --out, writes a line per
    image to predictions.jsonl, and a picture of the prediction and the task's maps under the name of the image. Images
    that cannot be read are listed in failed.txt, and the exit status is 3.
    """
    from pipeline import load_model
    from pipeline.shards.pictures import pictures
    from pipeline.tasks.coco_results import CocoIds
    from pipeline.tasks.predictions import Predictor, summaries, write_predictions

    if out is None and (coco or coco_ids or given):
        raise click.UsageError("--coco, --coco-ids and --option: only apply with --out; give a folder for the results")
    if coco_ids is not None and not coco:
        raise click.UsageError("--coco-ids: only applies with --coco; add it")
    loaded, found = load_model(model), pictures(images, out)
    if out is None:
        print_shares(summaries(loaded, found, top, batch_size), as_json=as_json)
        return
    options = {"top_k": top} if "top_k" in loaded.task.predict_options else {}
    ids = (CocoIds() if coco_ids is None else CocoIds.read(coco_ids)) if coco else None
    predictor = Predictor(loaded, options | parsed(given), batch_size)
    write_predictions(predictor, found, out, ids)
    click.echo(f"{out}: predictions of {len(found):,} images")


def print_shares(rows: Any, *, as_json: bool) -> None:
    """Print the class names and their shares for each image."""
    import json

    if as_json:
        click.echo(json.dumps([{"image": image, "classes": found} for image, found in rows], indent=1))
        return
    for image, found in rows:
        click.echo(image)
        for name, share in found.items():
            click.echo(f"  {share:6.1%}  {name}")


def parsed(given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=YAML options as values. Raises UsageError."""
    from pipeline.config.yaml_text import parse_yaml
    from pipeline.errors import ConfigError

    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            options[name.strip()] = parse_yaml(value, "--option")
        except ConfigError:
            equals = ""
        if not equals or not name.strip():
            raise click.UsageError(f"--option: found {text!r}, expected NAME=YAML, such as threshold=0.5")
    return options
