"""`minivit shards`: make, index and verify WebDataset shards."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

if TYPE_CHECKING:
    from pipeline.shards.index import DatasetIndex

CLICK_TYPES = {int: click.INT, str: click.STRING, Path: click.Path(path_type=Path)}
WORKERS = click.option("--workers", type=click.IntRange(1), help="Processes; default: one per CPU.")


@click.group("shards")
def group() -> None:
    """Make, index and verify WebDataset shards."""


class MakeGroup(click.Group):
    """One command for each built-in data set, with the options that its `make` function takes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from pipeline.shards.make import names

        return names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        from pipeline.shards.make import make, maker

        function = maker(name)  # a wrong name ends here, with the right ones

        def run(out: Path, **options: Any) -> None:
            _summarise(make(name, out, **options))

        out = click.Option(["--out"], type=CLICK_TYPES[Path], required=True, help="Folder for the shards.")
        text = (inspect.getdoc(function) or "").split("Raises", 1)[0]
        return click.Command(name, callback=run, params=[out, *_options(function)], help=text)


@group.command("make", cls=MakeGroup)
def make_group() -> None:
    """Write a data set as indexed shards; what is there and valid stays."""


@group.command("index")
@click.argument("pattern")
@click.option("--classes", help="Label names in order: a,b,c or a file with one a line.")
@click.option("--label-key", help="Extension of the label members; default: cls.")
@WORKERS
def index_command(pattern: str, classes: str | None, label_key: str | None, workers: int | None) -> None:
    """Index the shards that PATTERN means: a folder, a tar, a glob, or braces such as train-{000000..000010}.tar.

    The tars may come from any tool that names members as WebDataset does, and lie anywhere that fsspec reaches.
    Shards whose index still fits are not read again.
    """
    from pipeline.shards.build import build_index

    _summarise(build_index(pattern, classes=_class_names(classes), label_key=label_key, workers=workers))


@group.command("verify")
@click.argument("pattern")
@WORKERS
def verify_command(pattern: str, workers: int | None) -> None:
    """Read every byte of the shards that PATTERN means; one line for each fault, and exit status 3 if there is one."""
    from pipeline.errors import DataError
    from pipeline.shards.verify import verify

    faults = 0
    for fault in verify(pattern, workers=workers):
        faults += 1
        click.echo(str(fault))
    if faults:
        raise DataError(f"{pattern}: {faults} fault{'s' if faults > 1 else ''} found; make or copy those shards again")
    click.echo(f"{pattern}: valid")


def _options(function: Callable[..., Any]) -> list[click.Parameter]:
    """Keyword-only parameters `name: Annotated[type, help]` as click options."""
    hints = get_type_hints(function, include_extras=True)
    options: list[click.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        annotated, text = get_args(hints[parameter.name])
        if isinstance(annotated, types.UnionType):
            annotated = get_args(annotated)[0]
        required = parameter.default is parameter.empty
        options.append(
            click.Option(
                [f"--{parameter.name.replace('_', '-')}"],
                type=CLICK_TYPES[annotated],
                required=required,
                default=None if required else parameter.default,
                show_default=parameter.default is not None,
                help=f"{text[0].upper()}{text[1:]}.",
            )
        )
    return options


def _class_names(given: str | None) -> list[str] | None:
    from pipeline.errors import DataError

    if given is None:
        return None
    path = Path(given)
    try:
        names = path.read_text(encoding="utf-8").splitlines() if path.is_file() else given.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: --classes cannot be read as text ({error})") from None
    names = [name.strip() for name in names if name.strip()]
    if len(names) < 1:
        raise DataError(f"--classes {given!r}: names no class; give a,b,c or a file with one name a line")
    return names


def _summarise(index: DatasetIndex) -> None:
    classes = f", {len(index.classes)} classes" if index.classes is not None else ""
    click.echo(
        f"{index.url}: {len(index.shards):,} shards, {index.num_samples:,} samples, "
        f"{int(index.sizes.sum()) / 1e6:,.1f} MB{classes}, digest {index.digest}"
    )
