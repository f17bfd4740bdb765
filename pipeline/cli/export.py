"""`minivit export`: a finished model for downstream code."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.paths import UserPath


@click.command("export")
@click.argument("model", type=UserPath(path_type=Path), metavar="RUN[/STAGE]")
@click.option(
    "--format",
    "name",
    default="safetensors",
    show_default=True,
    help="safetensors, timm, clip, open-clip, hf-clip, onnx or torch-export.",
)
@click.option(
    "--checkpoint",
    metavar="best|last|step-N",
    help="Export a committed checkpoint instead of the finished model; the stage need not have finished.",
)
@click.option(
    "--out",
    type=UserPath(path_type=Path),
    required=True,
    help="New or empty folder, or one with an export in this format.",
)
def command(model: Path, name: str, checkpoint: str | None, out: Path) -> None:
    """Write the model of RUN's last training stage, or of RUN/STAGE, to a folder."""
    from pipeline.export import export
    from pipeline.models.bundle import load_bundle
    from pipeline.models.pretrained import find_bundle
    from pipeline.stages.kept import checkpoint_bundle

    bundle = checkpoint_bundle(model, checkpoint) if checkpoint else load_bundle(find_bundle(model))
    click.echo(str(export(name, bundle, out)))
