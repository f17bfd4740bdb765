"""`minivit checkpoints`: what a run could resume from."""

from __future__ import annotations

from pathlib import Path

import click

RUN = click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.group("checkpoints")
def group() -> None:
    """List and verify the checkpoints of a run."""


@group.command("list")
@RUN
def list_command(run: Path) -> None:
    """Every checkpoint under RUN: step, samples, workers, ZeRO stage, bytes; uncommitted ones are marked."""
    from pipeline.checkpoints.manifest import read_manifest
    from pipeline.errors import CheckpointError

    for folder in folders_of(run):
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            click.echo(f"{folder}  not a checkpoint: {error}")
            continue
        size = sum(record.bytes for record in manifest.files)
        click.echo(
            f"{folder}  step {manifest.step}  {manifest.slots:,} samples  {manifest.world_size} workers  "
            f"ZeRO-{manifest.zero_stage}  {size / 1e6:,.1f} MB"
        )


@group.command("verify")
@RUN
def verify_command(run: Path) -> None:
    """Check every file of every checkpoint under RUN against its manifest; exit status 5 if one does not hold."""
    from pipeline.checkpoints.manifest import verify
    from pipeline.errors import CheckpointError

    faults = 0
    for folder in folders_of(run):
        try:
            verify(folder)
            click.echo(f"{folder}  valid")
        except CheckpointError as error:
            faults += 1
            click.echo(f"{folder}  not valid: {error}")
    if faults:
        raise CheckpointError(f"{run}: {faults} checkpoints are not valid; a resumed run passes over them")


def folders_of(run: Path) -> list[Path]:
    from pipeline.checkpoints.store import step_folders

    return [folder for root in sorted(run.rglob("checkpoints")) for folder in step_folders(root)]
