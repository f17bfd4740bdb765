"""Options and output that the `shards` commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.shards.index import DatasetIndex

IMAGE_KEY = click.option(
    "--image-key", help="Extensions of the image member, first match wins, such as 'png;jpg'; default: the index's."
)
LABEL_KEY = click.option("--label-key", help="Extension of the label member; default: the index's, else cls.")
WORKERS = click.option("--workers", type=click.IntRange(1), help="Processes; default: one per CPU.")


def summarise(index: DatasetIndex) -> None:
    """Print one line about an index."""
    classes = f", {len(index.classes)} classes" if index.classes is not None else ""
    click.echo(
        f"{index.url}: {len(index.shards):,} shards, {index.num_samples:,} samples, "
        f"{int(index.sizes.sum()) / 1e6:,.1f} MB{classes}, digest {index.digest}"
    )


def tell_lacking(index: DatasetIndex, pattern: str) -> None:
    """Print how many samples lack an image or a label: in total, and in the worst shards."""
    from pipeline.shards.lacks import tell_lacks

    for line in tell_lacks(index):
        click.echo(line)
    if index.lacks:
        click.echo(f"  `minivit shards verify {pattern!r}` names each")
