"""Built-in data sets, one public module each, with a function `make(out, ...) -> DatasetIndex`.

A data set is named after its module, with hyphens. Keyword-only parameters annotated `Annotated[type, "help"]` are its
options in `minivit shards make NAME`; if all of them have defaults, `datasets.<name>.make` can name the data set.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.shards import urls
from pipeline.shards.build import build_index, folder_lock
from pipeline.shards.index import DatasetIndex
from pipeline.shards.index_file import OlderIndex, load_index
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.store_errors import unwritable


def names() -> list[str]:
    """The names of the built-in data sets."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))


def maker(name: str) -> Callable[..., DatasetIndex]:
    """The `make` function of a built-in data set. Raises DataError, which lists the names, for an unknown name."""
    known = names()
    hyphenated = name.replace("_", "-")
    if hyphenated not in known:
        near = difflib.get_close_matches(hyphenated, known, 1)
        hint = f"did you mean {near[0]!r}? Allowed: " if near else "allowed: "
        raise DataError(f"{name!r} is not a built-in data set; {hint}{', '.join(known)}")
    make: Callable[..., DatasetIndex] = importlib.import_module(f"{__name__}.{hyphenated.replace('-', '_')}").make
    return make


def make(name: str, out: str | Path, **options: Any) -> DatasetIndex:
    """Writes a built-in data set's shards and index to a local folder; keeps existing valid shards.

    Only one process at a time works on a folder; others wait. Returns the index of the folder. Raises DataError.
    """
    function = maker(name)
    if not urls.is_local(str(out)):
        raise DataError(f"{out}: data sets can only be made in a local folder; make it there, then copy the folder")
    folder = urls.local_path(str(out))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    with folder_lock(str(folder), "make"):
        for unfinished in folder.glob(".*.tar.[0-9]*.tmp"):  # of a killed run: nobody else holds the lock
            unfinished.unlink()
        return function(folder, **options)


def ensure_made(name: str, pattern: str) -> DatasetIndex:
    """The index for a shard pattern, after making the data set in its folder if there is no valid one.

    Raises DataError like `make` and `load_index`, and for a data set that has required options.
    """
    function = maker(name)
    try:
        return load_index(pattern)
    except OlderIndex:
        return build_index(pattern)
    except DataError:
        required = [
            f"--{parameter.name.replace('_', '-')}"
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        ]
        folder = parse_pattern(pattern).folder
        if required:
            command = f"minivit shards make {name} --out {folder} {' '.join(required)} ..."
            raise DataError(
                f"{pattern!r} has no valid shards, and {name!r} cannot be made without more settings; run `{command}`"
            ) from None
    make(name, folder)
    return load_index(pattern)
