"""Built-in data sets, one file each: a public module here with a function `make(out, ...) -> DatasetIndex`.

Its name is the module's, with hyphens. Keyword-only parameters annotated `Annotated[type, "help"]` are the options of
`minivit shards make NAME`; a data set whose options all have defaults can be named by `datasets.<name>.make`.
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
from pipeline.shards import store
from pipeline.shards.build import build_index, folder_lock
from pipeline.shards.index import DatasetIndex, OlderIndex, load_index
from pipeline.shards.pattern import parse_pattern


def names() -> list[str]:
    """The built-in data sets."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if not name.startswith("_"))


def maker(name: str) -> Callable[..., DatasetIndex]:
    """The `make` function of a built-in data set. Raises DataError, which lists the names, for another name."""
    known = names()
    hyphenated = name.replace("_", "-")
    if hyphenated not in known:
        near = difflib.get_close_matches(hyphenated, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"{name!r} is no built-in data set; {hint}there are: {', '.join(known)}")
    make: Callable[..., DatasetIndex] = importlib.import_module(f"{__name__}.{hyphenated.replace('-', '_')}").make
    return make


def make(name: str, out: str | Path, **options: Any) -> DatasetIndex:
    """Write a built-in data set's shards and index into a local folder; what is there and valid stays.

    Only one process at a time works on a folder; others wait. Returns the index of the folder. Raises DataError.
    """
    function = maker(name)
    if not store.is_local(str(out)):
        raise DataError(f"{out}: data sets are made in a local folder; make it there, then copy the folder")
    folder = store.local_path(str(out))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store.unwritable(folder, error) from None
    with folder_lock(str(folder), "make"):
        for unfinished in folder.glob(".*.tar.[0-9]*.tmp"):  # of a run that was killed: the lock says nobody writes it
            unfinished.unlink()
        return function(folder, **options)


def ensure_made(name: str, pattern: str) -> DatasetIndex:
    """The index that a shard pattern means, after making the data set in its folder if there is no valid one.

    Raises DataError as `make` and `load_index` do, and for a data set that cannot be made without being told more.
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
                f"{pattern!r} has no valid shards, and {name!r} needs more to make them; run `{command}`"
            ) from None
    make(name, folder)
    return load_index(pattern)
