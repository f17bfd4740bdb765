"""`minivit evaluate`: measures finished models on a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pipeline.cli.paths import UserPath
from pipeline.cli.shards_options import IMAGE_KEY, TARGET

if TYPE_CHECKING:
    from pipeline.config.cluster import ClusterConfig
    from pipeline.config.probe import MethodsConfig
    from pipeline.metrics.schema import Measure


@click.command("evaluate")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--data", required=True, metavar="SHARDS", help="Folder, glob or URL of shards, or CONFIG.yaml:NAME.")
@IMAGE_KEY
@TARGET
@click.option(
    "--batch-size", default=256, show_default=True, type=click.IntRange(1), help="Images per batch on each rank."
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "bf16"]),
    help="Precision of weights and activations.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Number of ranks; default: one per GPU, without GPUs one per CPU."
)
@click.option(
    "--gpus-per-worker", type=click.IntRange(0, 1), help="0: run on CPUs; default: use GPUs if there are any."
)
@click.option(
    "--loader-workers",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Processes per rank that decode images.",
)
@click.option(
    "--env",
    multiple=True,
    metavar="NAME",
    help="Another environment variable that ranks inherit from this process; may be repeated.",
)
@click.option(
    "--task", metavar="YAML", help="A `task` section, such as '{type: T, ...}'; default: the models' own task."
)
@click.option(
    "--probe",
    metavar="METHODS",
    help="Evaluate frozen features instead: knn, linear, retrieval, or several of them separated by commas.",
)
@click.option("--train", metavar="SHARDS", help="For --probe: labelled shards to fit knn and linear on.")
@click.option(
    "--features",
    default="both",
    show_default=True,
    type=click.Choice(["cls", "patches", "both"]),
    help="For --probe: the class token, the mean of the patches, or both.",
)
@click.option(
    "--out",
    type=UserPath(path_type=Path),
    help="Folder for evaluation.json (with --probe: probe.json), tables and pictures.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    models: tuple[str, ...],
    data: str,
    image_key: str | None,
    targets: dict[str, str],
    batch_size: int,
    precision: Literal["fp32", "bf16"],
    workers: int | None,
    gpus_per_worker: int | None,
    loader_workers: int,
    env: tuple[str, ...],
    task: str | None,
    probe: str | None,
    train: str | None,
    features: Literal["cls", "patches", "both"],
    out: Path | None,
    as_json: bool,
) -> None:
    """Evaluate each MODEL on every sample of SHARDS.

    A MODEL is a run, RUN/STAGE, an export, timm:NAME or a safetensors file. Images are resized and normalised as each
    model requires; the shards must have the model's classes. Runs on the Ray cluster at RAY_ADDRESS, or else on this
    machine.

    With --probe, the models stay frozen: each method is fitted on the features of --train and evaluated on those of
    SHARDS. A MODEL may then have any task, and `random` (the first model with initial weights) and `pixels` are valid
    MODELs, as baselines.
    """
    import json

    from pipeline.config.load import parse_task
    from pipeline.shards.named_sets import named_set
    from pipeline.stages.evaluate_models import evaluate_models

    named = named_set(data, image_key, targets)
    cluster = cluster_config(workers, gpus_per_worker, env)
    how: Any = {"batch_size": batch_size, "loader_workers": loader_workers, "precision": precision, "out": out}
    if probe is not None:
        from pipeline.stages.probe_models import probe_models

        methods = chosen_methods(probe, train, task)
        fitted = named_set(train or data, image_key, targets)
        found = probe_models(models, fitted, named, cluster, methods=methods, features=features, **how)
    elif train is not None:
        raise click.UsageError("--train: only applies with --probe; add its methods, such as --probe knn,linear")
    else:
        chosen = None if task is None else parse_task(task, "--task")
        found = evaluate_models(models, named, cluster, task=chosen, **how)
    click.echo(json.dumps(found, indent=1) if as_json else measures_table(found))


def cluster_config(workers: int | None, gpus_per_worker: int | None, env: Sequence[str]) -> ClusterConfig:
    """What the options ask of the cluster. Raises as `variables` does."""
    from pipeline.config.cluster import ClusterConfig

    gpus: Any = "auto" if gpus_per_worker is None else gpus_per_worker
    return ClusterConfig(workers=workers or "auto", gpus_per_worker=gpus, env=variables(env))


def variables(names: Sequence[str]) -> list[str]:
    """The names of `--env`. Raises click.UsageError for anything but a name, ConfigError if one is not set."""
    from pipeline.cluster.environment import unset
    from pipeline.config.cluster import VARIABLE_NAME

    if wrong := [name for name in names if not VARIABLE_NAME.fullmatch(name)]:
        raise click.UsageError(f"--env: found {wrong[0]!r}, expected the name of a variable, without its value")
    for fault in unset(names, os.environ, "--env"):
        raise fault
    return list(names)


def chosen_methods(names: str, train: str | None, task: str | None) -> MethodsConfig:
    """The methods of `--probe`, at their default settings. Raises click.UsageError."""
    from pipeline.config.fields import allowed
    from pipeline.config.probe import MethodsConfig

    if task is not None:
        raise click.UsageError(
            "--task: does not apply with --probe, which evaluates features whatever the task; leave out one of them"
        )
    chosen = [name.strip() for name in names.split(",")]
    if wrong := [name for name in chosen if name not in MethodsConfig.model_fields]:
        raise click.UsageError(f"--probe: found {wrong[0]!r}, {allowed(wrong[0], MethodsConfig.model_fields)}")
    methods = MethodsConfig.model_validate({name: {} for name in chosen})
    if train is None and methods.fit:
        raise click.UsageError("--probe: knn and linear need --train SHARDS, the labelled images to fit them on")
    return methods


def measures_table(evaluation: dict[str, Any]) -> str:
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
    lines += intervals(models, measures)
    left_out = evaluation["bad_samples"]
    if bad := sum(part["bad"] for part in ([left_out] if "bad" in left_out else left_out.values())):
        lines.append(f"left out: {bad:,} bad samples")
    return "\n".join(lines)


def intervals(models: dict[str, Any], measures: Sequence[Measure]) -> list[str]:
    """A line with the width of the confidence intervals of shares, if there are any."""
    reach = [
        (high - low) / 2
        for found in models.values()
        for measure in measures
        if measure.share and (interval := found.get("intervals", {}).get(measure.name))
        for low, high in [interval]
    ]
    return [f"95 % confidence intervals of shares: at most ±{100 * max(reach):.2f} points"] if reach else []
