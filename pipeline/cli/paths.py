"""Argument types for paths: `~` and variables are expanded where no shell has done it."""

from __future__ import annotations

import os
from typing import Any

import click


class UserPath(click.Path):
    """A path; expands what a shell leaves alone in `--out=~/x` or '$DATA/x'."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            value = expanded(self, value, param, ctx)
        return super().convert(value, param, ctx)


class PatternType(click.ParamType[str]):
    """A shard pattern: a path or URL with braces or wildcards, quoted so that the shell leaves them alone."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return expanded(self, str(value), param, ctx)


def expanded(kind: click.ParamType[Any], text: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
    """Expand a path; one that exists is taken literally, whatever characters it holds."""
    from pipeline.config.paths import expand

    if not text.startswith("~/") and os.path.lexists(text):
        return text
    try:
        return expand(text)
    except ValueError as error:
        return kind.fail(f"found {text!r}, expected {error}.", param, ctx)


PATTERN = PatternType()
