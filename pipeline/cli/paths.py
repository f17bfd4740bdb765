"""Argument types for paths, which expand `~` and variables that the shell has not expanded."""

from __future__ import annotations

import os
from typing import Any

import click


class UserPath(click.Path):
    """A path; expands what the shell does not in `--out=~/x` or '$DATA/x'."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            value = expanded(self, value, param, ctx)
        return super().convert(value, param, ctx)


class PatternType(click.ParamType[str]):
    """A shard pattern: a path or URL with braces or wildcards, quoted to protect them from the shell."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return expanded(self, str(value), param, ctx)


def expanded(kind: click.ParamType[Any], text: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
    """Expand a path; an existing path is taken literally, whatever characters it contains."""
    from pipeline.config.paths import expand

    if not text.startswith("~/") and os.path.lexists(text):
        return text
    try:
        return expand(text)
    except ValueError as error:
        return kind.fail(f"found {text!r}, expected {error}.", param, ctx)


PATTERN = PatternType()
