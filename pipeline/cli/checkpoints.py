"""`minivit checkpoints`: the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.paths import UserPath

if TYPE_CHECKING:
    from pipeline.checkpoints.storage import Storage

RUN = click.argument("run", type=UserPath(exists=True, file_okay=False, path_type=Path), metavar="RUN[/stages/STAGE]")
STEP = click.option("--step", type=click.IntRange(min=0), help="Only the checkpoint of this step; default: the newest.")


@click.group("checkpoints")
def group() -> None:
    """List, verify, inspect and reshard the checkpoints of a run, or of one stage's folder."""


@group.command("list")
@RUN
def list_command(run: Path) -> None:
    """List the checkpoints of RUN with step, samples, workers, ZeRO stage, bytes, and marks: best, uncommitted."""
    from pipeline.checkpoints.selection import step_folders
    from pipeline.checkpoints.storage import open_storage
    from pipeline.stages.checkpoint_model import best_checkpoint
    from pipeline.stages.folder import checkpointing_stages

    for status in checkpointing_stages(run).values():
        storage = open_storage(str(status.checkpoints))
        best = best_checkpoint(storage, status)
        for folder in step_folders(storage):
            click.echo(f"{storage.url(folder)}  {described(storage, folder, best, str(status.keep_best))}")


@group.command("verify")
@RUN
def verify_command(run: Path) -> None:
    """Check all files of RUN's checkpoints against their manifests; exit status 5 if one does not match."""
    from pipeline.checkpoints.manifest import verify_checkpoint
    from pipeline.errors import CheckpointError

    faults = 0
    for storage, folder in checkpoints_of(run):
        try:
            verify_checkpoint(storage, folder)
            click.echo(f"{storage.url(folder)}  valid")
        except CheckpointError as error:
            faults += 1
            click.echo(f"{storage.url(folder)}  invalid: {error}")
    if faults:
        raise CheckpointError(f"{run}: found {faults} invalid checkpoint(s), see above; a resumed run skips them")


@group.command("inspect")
@RUN
@STEP
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect_command(run: Path, step: int | None, as_json: bool) -> None:
    """Print a checkpoint of each stage of RUN: manifest, files, and bytes per kind of state."""
    import json
    from dataclasses import asdict

    from pipeline.checkpoints.manifest import read_manifest
    from pipeline.checkpoints.state_reader import StateReader

    for storage, folder in chosen(run, step):
        manifest = read_manifest(storage, folder)
        if as_json:
            click.echo(json.dumps(asdict(manifest), indent=1))
            continue
        parameters = StateReader(storage, folder, manifest).bytes_by_key()
        click.echo(f"{storage.url(folder)}")
        for name in ("step", "slots", "world_size", "zero_stage", "digest", "metrics", "run_ids"):
            click.echo(f"  {name:12} {getattr(manifest, name)}")
        variant = manifest.spec.get("backbone", manifest.spec)["variant"]  # format 1 has no heads next to it
        click.echo(f"  {'model':12} {variant}, {len(manifest.shapes)} tensors")
        for key, size in parameters.items():
            click.echo(f"  {key:12} {size / 1e6:,.1f} MB")
        for record in manifest.files:
            click.echo(f"  {record.name}  {record.bytes:,} bytes  sha256 {record.sha256}")


@group.command("reshard")
@RUN
@STEP
@click.option("--files", required=True, type=click.IntRange(min=1), help="Files to split each checkpoint into.")
def reshard_command(run: Path, step: int | None, files: int) -> None:
    """Rewrite a checkpoint of each stage of RUN with another number of files, for an archive or a slow store.

    You need not do this to resume with other workers or another ZeRO stage: ranks read their parts from any files.
    """
    from pipeline.checkpoints.reshard import reshard
    from pipeline.stages.folder import RunFolder

    with RunFolder(run).locked():
        for storage, folder in chosen(run, step):
            manifest = reshard(storage, folder, files)
            click.echo(f"{storage.url(folder)}  {len(manifest.files)} files  {manifest.bytes / 1e6:,.1f} MB")


def described(storage: Storage, folder: str, best: int | None, keep_best: str) -> str:
    """The line that `list` prints for a checkpoint."""
    from pipeline.checkpoints.manifest import read_manifest
    from pipeline.errors import CheckpointError

    try:
        manifest = read_manifest(storage, folder)
    except CheckpointError as error:
        return f"not a checkpoint: {error}"
    mark = f"  best {keep_best} {manifest.metrics[keep_best]:.4g}" if manifest.step == best else ""
    return (
        f"step {manifest.step}  {manifest.slots:,} samples  {manifest.world_size} workers  "
        f"ZeRO-{manifest.zero_stage}  {manifest.bytes / 1e6:,.1f} MB{mark}"
    )


def checkpoints_of(run: Path) -> Iterator[tuple[Storage, str]]:
    """Every checkpoint folder of every stage, committed or not, oldest first."""
    from pipeline.checkpoints.selection import step_folders
    from pipeline.checkpoints.storage import open_storage
    from pipeline.stages.folder import checkpointing_stages

    for status in checkpointing_stages(run).values():
        storage = open_storage(str(status.checkpoints))
        for folder in step_folders(storage):
            yield storage, folder


def chosen(run: Path, step: int | None) -> list[tuple[Storage, str]]:
    """Each stage's checkpoint of the given step, if it has one, or else its newest committed checkpoint."""
    from pipeline.checkpoints.manifest import NAME
    from pipeline.checkpoints.selection import step_folder
    from pipeline.errors import CheckpointError

    found: dict[str, tuple[Storage, str]] = {}
    for storage, folder in checkpoints_of(run):
        wanted = folder == step_folder(step) if step is not None else f"{folder}/{NAME}" in storage.files(folder)
        if wanted:
            found[storage.root] = storage, folder
    if not found:
        which = "committed checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(f"{run}: found no {which}; see `minivit checkpoints list {run}`")
    return list(found.values())
