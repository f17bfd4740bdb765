"""`minivit shards`: makes, indexes, verifies and inspects WebDataset shards."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click

from pipeline.cli.paths import PATTERN, UserPath
from pipeline.cli.shards_options import IMAGE_KEY, TARGET, WORKERS, print_index, print_unusable, shard_mapper
from pipeline.cli.shards_rewrite import regroup_command, reshard_command, split_command

OF_CLASSES = (
    "without",
    "classes",
    "counted",
    "spread",
    "per_class",
)  # figures of labels that are printed on their own lines
MOST_FAULTS = 20  # lines of each kind that `verify` prints
CLICK_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING, Path: UserPath(path_type=Path)}


@click.group("shards")
def group() -> None:
    """Make, index and verify WebDataset shards."""


class MakeGroup(click.Group):
    """One command for each built-in data set, with the parameters of its `make` function as options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from pipeline.shards.make import names

        return names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        from pipeline.shards.make import make, maker

        function = maker(name)  # raises for a wrong name, and lists the right ones

        def run(out: Path, **options: Any) -> None:
            print_index(make(name, out, **options))

        out = click.Option(["--out"], type=CLICK_TYPES[Path], required=True, help="Folder for the shards.")
        text = (inspect.getdoc(function) or "").split("Raises", 1)[0]
        return click.Command(name, callback=run, params=[out, *_options(function)], help=text)


@group.command("make", cls=MakeGroup)
def make_group() -> None:
    """Write a data set as indexed shards, keeping valid ones that exist."""


@group.command("index")
@click.argument("pattern", type=PATTERN)
@click.option(
    "--classes",
    multiple=True,
    metavar="[KIND=]NAMES",
    help="Class names of one kind of label, in order: a,b,c or a file with one per line.",
)
@IMAGE_KEY
@TARGET
@click.option(
    "--headers-only",
    is_flag=True,
    help="Read only headers and labels, by byte ranges: quick for remote shards, but changed pixels go unnoticed.",
)
@click.option(
    "--counts",
    is_flag=True,
    help="Read no shards: use the numbers of samples that img2dataset, wids or Megatron-Energon wrote with them.",
)
@WORKERS
def index_command(
    pattern: str,
    classes: tuple[str, ...],
    image_key: str | None,
    targets: dict[str, str],
    headers_only: bool,
    counts: bool,
    workers: int | None,
) -> None:
    """Index the shards that match PATTERN: a folder, a tar, a glob, or braces such as train-{000000..000010}.tar.

    CONFIG.yaml:NAME indexes a data set of a config and uses its keys. The tars may come from any tool that names
    members like WebDataset, and may be on any storage that fsspec supports. Shards that have not changed are not read
    again. Counts samples without an image or label; labels are the members given by --target, or the usual ones.

    With --counts, training can start at once on hundreds of thousands of shards: a shard is scanned when it is first
    read, and one with another number of samples than its count ends the run.

    Shards are read on the Ray cluster at RAY_ADDRESS, if that is set. An interrupted command resumes.
    """
    if counts and headers_only:
        raise click.UsageError(
            "--counts: does not read headers; leave out --headers-only, or leave out --counts to read them"
        )
    from pipeline.shards.build import build_index
    from pipeline.shards.class_file import read_classes
    from pipeline.shards.counted import index_by_counts
    from pipeline.shards.named_sets import named_set

    names = read_classes(classes)
    one = named_set(pattern, image_key, targets)
    asked: dict[str, Any] = {"classes": names, "image_key": one.config.image_key, "targets": one.members}
    if counts:
        index = index_by_counts(one.pattern, **asked)
    else:
        index = build_index(one.pattern, **asked, headers_only=headers_only, workers=workers, mapper=shard_mapper())
    print_index(index)
    print_unusable(index, pattern)


@group.command("verify")
@click.argument("patterns", type=PATTERN, nargs=-1, required=True, metavar="PATTERN...")
@click.option(
    "--decode/--no-decode", default=True, show_default=True, help="Decode every image, and look for duplicates."
)
@click.option("--all", "print_all", is_flag=True, help=f"Print every fault, not only {MOST_FAULTS} of each kind.")
@IMAGE_KEY
@TARGET
@WORKERS
def verify_command(
    patterns: tuple[str, ...],
    decode: bool,
    print_all: bool,
    image_key: str | None,
    targets: dict[str, str],
    workers: int | None,
) -> None:
    """Read every byte of the shards that match PATTERN and print all faults; exit status 3 if there are any.

    CONFIG.yaml:NAME verifies a data set of a config and uses its keys; CONFIG.yaml verifies all of them. An image in
    two data sets is a fault. Duplicates within a data set are reported, but are not faults.

    Shards are read on the Ray cluster at RAY_ADDRESS if that is set.
    """
    from collections import Counter

    from pipeline.errors import DataError
    from pipeline.shards.named_sets import named_sets
    from pipeline.shards.verify import Kind, verify_shards

    sets = [one for pattern in patterns for one in named_sets(pattern, image_key, targets)]
    found: Counter[Kind] = Counter()
    for fault in verify_shards(*sets, decode_images=decode, workers=workers, mapper=shard_mapper()):
        found[fault.kind] += 1
        if print_all or found[fault.kind] <= MOST_FAULTS:
            click.echo(str(fault))
    for kind, number in found.items():
        if not print_all and number > MOST_FAULTS:
            click.echo(f"... and {kind.count(number - MOST_FAULTS, 'more ')} (--all prints them)")
    said = "; ".join(kind.summary(found[kind]) for kind in Kind if found[kind])
    if any(kind.is_fault for kind in found):
        raise DataError(f"{' '.join(patterns)}: {said}")
    click.echo(f"{' '.join(patterns)}: valid{f', but {said}' if said else ''}")


@group.command("order")
@click.argument("config", type=UserPath())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", required=True, help="A training stage of CONFIG, or STAGE/VARIANT.")
@click.option("--world-size", default=1, show_default=True, type=click.IntRange(1), help="Ranks.")
@click.option("--loader-workers", type=click.IntRange(0), help="Loader processes per rank; default: the stage's.")
@click.option("--from-slot", default=0, show_default=True, type=click.IntRange(0), help="First slot to show.")
@click.option("--slots", default=32, show_default=True, type=click.IntRange(1), help="Number of slots to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text: a list of {slot, rank, shard, key}.")
def order_command(
    config: str,
    overrides: tuple[str, ...],
    stage: str,
    world_size: int,
    loader_workers: int | None,
    from_slot: int,
    slots: int,
    as_json: bool,
) -> None:
    """Print the sample in each slot of a stage's stream, by running the loader of every rank.

    Slots are counted over all epochs: step n takes slots n*G to (n+1)*G - 1, for a global batch of G samples. A slot
    has the same sample for any world size and any number of loader workers.
    """
    import json

    from pipeline.config.load import load_config
    from pipeline.stages.order import stage_order

    rows = stage_order(
        load_config(config, overrides),
        stage,
        world_size=world_size,
        loader_workers=loader_workers,
        first_slot=from_slot,
        num_slots=slots,
    )
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        dataset = f"  {row['dataset']}" if "dataset" in row else ""
        click.echo(f"{row['slot']:>12}  rank {row['rank']:<5} {row['shard']}  {row['key']}{dataset}")


@group.command("stats")
@click.argument("pattern", type=PATTERN)
@click.option("--plot", type=UserPath(dir_okay=False, path_type=Path), help="Write histograms to this PNG file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@IMAGE_KEY
@TARGET
@WORKERS
def stats_command(
    pattern: str, plot: Path | None, as_json: bool, image_key: str | None, targets: dict[str, str], workers: int | None
) -> None:
    """Print counts, bytes, formats, image sizes and classes of the shards of PATTERN or CONFIG.yaml:NAME."""
    import json

    from pipeline.shards.named_sets import named_set
    from pipeline.shards.stats import dataset_stats, draw_histograms

    stats, sizes = dataset_stats(named_set(pattern, image_key, targets), workers)
    if plot is not None:
        draw_histograms(stats, sizes, plot)
    if as_json:
        click.echo(json.dumps(stats, indent=1, ensure_ascii=False))
        return
    labels = stats.pop("targets")
    for name, value in stats.items():
        show_figure(name.replace("_", " "), value)
    for kind, found in labels.items():
        show_figure(f"without {kind}", found["without"])
        for name in (name for name in found if name not in OF_CLASSES):
            show_figure(f"{kind} {name.replace('_', ' ')}", found[name])
        if "per_class" in found:
            most = sorted(found["per_class"].items(), key=lambda item: -item[1])
            click.echo(f"{f'{kind} classes':20} {found['classes']:,}; {found['counted']} in the largest: ", nl=False)
            click.echo(", ".join(f"{name} {count:,}" for name, count in most[:10]))


def show_figure(name: str, value: Any) -> None:
    """A line with a number, a share, or a distribution."""
    if isinstance(value, dict):
        value = "   ".join(f"{key} {count:,}" for key, count in value.items())
    text = value if isinstance(value, str) else f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
    click.echo(f"{name:20} {text}")


@group.command("preview")
@click.argument("pattern", type=PATTERN)
@click.option("--out", type=UserPath(dir_okay=False, path_type=Path), default="preview.png", show_default=True)
@click.option("--count", default=48, show_default=True, type=click.IntRange(1, 10_000), help="Samples to show.")
@click.option("--columns", default=8, show_default=True, type=click.IntRange(1, 100), help="Samples per row.")
@click.option(
    "--side", default=128, show_default=True, type=click.IntRange(16, 1024), help="Size of each sample, pixels."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed for selecting the samples.")
@click.option(
    "--background",
    nargs=3,
    type=click.IntRange(0, 255),
    metavar="R G B",
    help="Colour behind transparent pixels; default: the data set's, or white.",
)
@IMAGE_KEY
@TARGET
def preview_command(
    pattern: str,
    out: Path,
    count: int,
    columns: int,
    side: int,
    seed: int,
    background: tuple[int, int, int] | None,
    image_key: str | None,
    targets: dict[str, str],
) -> None:
    """Write a contact sheet: a PNG of some samples of PATTERN or CONFIG.yaml:NAME."""
    from pipeline.shards.named_sets import named_set
    from pipeline.shards.preview import contact_sheet

    one = named_set(pattern, image_key, targets)
    background = background or one.config.background
    contact_sheet(one, out, count=count, columns=columns, side=side, seed=seed, background=background)
    click.echo(f"{out}: written")


def _options(function: Callable[..., Any]) -> list[click.Parameter]:
    """Keyword-only parameters `name: Annotated[type, help]` as click options; a tuple is an option given repeatedly."""
    hints = get_type_hints(function, include_extras=True)
    options: list[click.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        annotated, text = get_args(hints[parameter.name])
        if isinstance(annotated, types.UnionType):
            annotated = get_args(annotated)[0]
        several = get_origin(annotated) is tuple
        if several:
            annotated = get_args(annotated)[0]
        required = parameter.default is parameter.empty
        options.append(
            click.Option(
                [f"--{parameter.name.replace('_', '-')}"],
                type=CLICK_TYPES[annotated],
                required=required,
                multiple=several,
                default=None if required else parameter.default,
                show_default=parameter.default is not None,
                help=f"{text[0].upper()}{text[1:]}.",
            )
        )
    return options


for command in (regroup_command, reshard_command, split_command):
    group.add_command(command)
