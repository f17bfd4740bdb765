"""`minivit shards regroup|reshard|split`: write the samples of a data set to other tars."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.paths import PATTERN, UserPath
from pipeline.cli.shards_options import IMAGE_KEY, TARGET, WORKERS, print_index, print_unusable

OUT = click.option("--out", type=UserPath(file_okay=False, path_type=Path), required=True, help="Folder to write to.")
SAMPLES_PER_SHARD = click.option(
    "--samples-per-shard",
    default=10_000,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of samples per shard.",
)


@click.command("regroup")
@click.argument("pattern", type=PATTERN)
@OUT
@IMAGE_KEY
@TARGET
@WORKERS
def regroup_command(
    pattern: str, out: Path, image_key: str | None, targets: dict[str, str], workers: int | None
) -> None:
    """Rewrite tars so that the members of each sample are adjacent, with unchanged content, and index them.

    Use this for tars with scattered samples, and for files that consist of several tars.
    """
    from pipeline.shards.named_sets import named_set
    from pipeline.shards.regroup import regroup

    one = named_set(pattern, image_key, targets)
    index = regroup(one.pattern, out, image_key=one.config.image_key, targets=one.members, workers=workers)
    print_index(index)
    print_unusable(index, str(out))


@click.command("reshard")
@click.argument("pattern", type=PATTERN)
@OUT
@SAMPLES_PER_SHARD
@click.option("--prefix", default="train", show_default=True, help="Shards are named PREFIX-000000.tar and so on.")
@click.option("--shuffle", type=click.IntRange(0), metavar="SEED", help="Shuffle all samples with this seed.")
@WORKERS
def reshard_command(
    pattern: str, out: Path, samples_per_shard: int, prefix: str, shuffle: int | None, workers: int | None
) -> None:
    """Copy the samples of PATTERN, unchanged, to shards of equal size; a second call resumes."""
    from pipeline.shards.named_sets import named_set
    from pipeline.shards.rewrite import split_samples

    index = named_set(pattern).open()
    parts = {prefix: 1.0}
    print_index(
        split_samples(
            index, out, parts=parts, samples_per_shard=samples_per_shard, shuffle_seed=shuffle, workers=workers
        )
    )


@click.command("split")
@click.argument("pattern", type=PATTERN)
@click.argument("parts", nargs=-1, required=True, metavar="PREFIX=SHARE...")
@OUT
@SAMPLES_PER_SHARD
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed for selecting the samples.")
@WORKERS
def split_command(
    pattern: str, parts: tuple[str, ...], out: Path, samples_per_shard: int, seed: int, workers: int | None
) -> None:
    """Split the samples of PATTERN at random, for example train=0.95 val=0.05; a second call resumes."""
    from pipeline.shards.named_sets import named_set
    from pipeline.shards.rewrite import split_samples

    index = named_set(pattern).open()
    shares = dict(_share(part) for part in parts)
    print_index(
        split_samples(index, out, parts=shares, samples_per_shard=samples_per_shard, shuffle_seed=seed, workers=workers)
    )


def _share(text: str) -> tuple[str, float]:
    from pipeline.errors import DataError

    name, _, share = text.partition("=")
    try:
        if not name or "/" in name:
            raise ValueError
        return name, float(share)
    except ValueError:
        raise DataError(f"{text!r}: expected PREFIX=SHARE, such as train=0.95 val=0.05") from None
