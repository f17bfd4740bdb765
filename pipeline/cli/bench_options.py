"""Options and output shared by the commands of `minivit bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click

Option = Callable[[Any], Any]  # a decorator of a command

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
PHOTOS_FOLDER = click.option(
    "--folder", default="data/bench", show_default=True, help="Where the photographs are kept."
)

PRECISION = click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)


def count_option(flag: str, default: int, help: str) -> Option:
    """An option that takes a number from 1 up."""
    return click.option(flag, default=default, show_default=True, type=click.IntRange(1), help=help)


def variant_option(default: str, help: str = "Model.") -> Option:
    return click.option("--variant", default=default, show_default=True, help=help)


def variants_option(*defaults: str, more: str = "") -> Option:
    return click.option(
        "--variant",
        "variants",
        multiple=True,
        default=defaults,
        show_default=True,
        help=f"Model; may be given several times.{more}",
    )


def print_figures(result: dict[str, Any], as_json: bool) -> None:
    """Print figures, one per line, or as JSON."""
    import json

    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    for name, value in flat(result):
        values = value if isinstance(value, list) else [value]
        if not any(isinstance(one, dict) for one in values):
            shown = ", ".join(f"{one:,.3g}" if isinstance(one, float) else str(one) for one in values)
            click.echo(f"{name.replace('_', ' '):24} {shown}")


def flat(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The figures of a nested result, each with the names on the way to it."""
    for name, value in result.items():
        if isinstance(value, dict):
            yield from ((f"{name} {key}", found) for key, found in flat(value))
        else:
            yield name, value
