"""Options and output shared by the `shards` commands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.shards.index import DatasetIndex
    from pipeline.shards.parallel import Mapper

IMAGE_KEY = click.option(
    "--image-key", help="Extensions of the image member, first match wins, such as 'png;jpg'; default: the index's."
)


def as_members(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """KIND=MEMBER options as a mapping. Raises BadParameter for other text or an unknown kind."""
    from pipeline.targets import target_kinds

    found = {}
    for text in given:
        kind, equals, member = text.partition("=")
        if not equals or not member or kind not in target_kinds():
            raise click.BadParameter(
                f"found {text!r}, expected KIND=MEMBER, such as class_id=cls; kinds: {', '.join(target_kinds())}"
            )
        found[kind] = member
    return found


TARGET = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="KIND=MEMBER",
    callback=as_members,
    help="Extension of the member with a kind of label, such as class_id=cls; default: the index's.",
)
WORKERS = click.option("--workers", type=click.IntRange(1), help="Processes; default: one per CPU.")


def shard_mapper() -> Mapper:
    """Where shards are read: on the Ray cluster at RAY_ADDRESS if that is set, otherwise in processes here."""
    from pipeline.shards.parallel import map_shards

    if not os.environ.get("RAY_ADDRESS"):
        return map_shards
    from pipeline.cluster.spread import map_on_cluster

    return map_on_cluster


def print_index(index: DatasetIndex) -> None:
    """Print one line about an index."""
    classes = "".join(f", {len(names)} classes of {kind}" for kind, names in index.classes.items())
    click.echo(
        f"{index.url}: {len(index.shards):,} shards, {index.num_samples:,} samples, "
        f"{int(index.sizes.sum()) / 1e6:,.1f} MB{classes}, digest {index.digest}"
    )


def print_unusable(index: DatasetIndex, pattern: str) -> None:
    """Print how many samples lack an image or a label: in total, and in the worst shards."""
    from pipeline.shards.unusable_samples import unusable, unusable_report

    for line in unusable_report(index):
        click.echo(line)
    if unusable(index, index.columns):
        click.echo(f"  `minivit shards verify {pattern!r}` lists them")
