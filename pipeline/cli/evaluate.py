"""`minivit evaluate`: how good finished models are on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from pipeline.cli.paths import UserPath
from pipeline.cli.shards_options import IMAGE_KEY, TARGET


@click.command("evaluate")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--data", required=True, metavar="SHARDS", help="Folder, glob or URL of shards, or CONFIG.yaml:NAME.")
@IMAGE_KEY
@TARGET
@click.option("--batch-size", default=256, show_default=True, type=click.IntRange(1), help="Images per rank at once.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "bf16"]),
    help="Of weights and activations.",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Ranks that share the data.")
@click.option("--gpus-per-worker", default=0, show_default=True, type=click.IntRange(0, 1), help="1 computes on GPUs.")
@click.option(
    "--loader-workers", default=1, show_default=True, type=click.IntRange(0), help="Processes per rank that decode."
)
@click.option(
    "--task", metavar="YAML", help="A `task` section, such as '{type: T, ...}'; default: the models' own task."
)
@click.option(
    "--out",
    type=UserPath(path_type=Path),
    help="Folder for evaluation.json and the tables and pictures beside it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    models: tuple[str, ...],
    data: str,
    image_key: str | None,
    targets: dict[str, str],
    batch_size: int,
    precision: Literal["fp32", "bf16"],
    workers: int,
    gpus_per_worker: int,
    loader_workers: int,
    task: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Judge each MODEL on every sample of SHARDS.

    A MODEL is a run, RUN/STAGE, an export, timm:NAME or a safetensors file. Images are resized and normalised as the
    model says; the shards' classes must be the model's. Runs on the Ray cluster at RAY_ADDRESS, else on this machine.
    """
    import json

    from pipeline.config.load import parse_task
    from pipeline.config.schema import ClusterConfig
    from pipeline.shards.named import named_set
    from pipeline.stages.evaluate_models import evaluate_models

    found = evaluate_models(
        models,
        named_set(data, image_key, targets),
        ClusterConfig(workers=workers, gpus_per_worker=gpus_per_worker),
        batch_size=batch_size,
        loader_workers=loader_workers,
        precision=precision,
        task=None if task is None else parse_task(task, "--task"),
        out=out,
    )
    click.echo(json.dumps(found, indent=1) if as_json else table(found))


def table(evaluation: dict[str, Any]) -> str:
    """One row per model, one column per measure."""
    from pipeline.metrics.outcome import schema_of

    models = evaluation["models"]
    measures = schema_of(evaluation).ranked
    rows = [["model", *(measure.words for measure in measures), "samples"]]
    for name, found in models.items():
        told = [measure.text(found[measure.name], 2) if measure.name in found else "" for measure in measures]
        rows.append([name, *told, f"{found['samples']:,}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    if bad := evaluation["bad_samples"]["bad"]:
        lines.append(f"left out: {bad:,} bad samples")
    return "\n".join(lines)
