"""Naming shards: a folder, one tar, a glob, or braces such as `train-{000000..000010}.tar`; a path or an fsspec URL."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pipeline.errors import DataError
from pipeline.shards import urls
from pipeline.shards.compressed import is_compressed, still_packed, unpacked

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
WILDCARD = re.compile(r"[*?\[]")
MOST_NAMES = 10_000_000
ALL = ("*.tar",)  # of a folder


@dataclass(frozen=True)
class Pattern:
    """`folder` is an absolute path or URL; `names` are literal names and globs within it, in order."""

    text: str
    folder: str
    names: tuple[str, ...]

    @cached_property
    def literals(self) -> list[str]:
        if not WILDCARD.search(self.text):  # there may be hundreds of thousands of names
            return list(self.names) if self.names != ALL else []
        return [name for name in self.names if not WILDCARD.search(name)]

    def select(self, present: Iterable[str]) -> list[str]:
        """The names among `present` that match the pattern, each once: literals in order, a glob's matches sorted."""
        known = sorted(name for name in present if name[:1] != ".")
        if self.names == ALL:
            return [name for name in known if name.endswith(".tar")]
        members, chosen = set(known), dict[str, None]()
        if len(self.literals) == len(self.names):
            return [name for name in dict.fromkeys(self.names) if name in members]
        for name in self.names:
            if WILDCARD.search(name):
                chosen.update(dict.fromkeys(fnmatch.filter(known, name)))
            elif name in members:
                chosen[name] = None
        return list(chosen)

    def select_packed(self, present: Iterable[str]) -> list[str]:
        """The compressed tars among `present` that match the pattern, by their own name or the plain tar's."""
        packed = still_packed(name for name in present if name[:1] != ".")
        if not packed:
            return []
        literals, globs = set(self.literals), [name for name in self.names if WILDCARD.search(name)]
        both = {name: (name, unpacked(name)) for name in packed}
        return [
            name
            for name, names in both.items()
            if not literals.isdisjoint(names) or any(fnmatch.filter(names, one) for one in globs)
        ]


def parse_pattern(text: str) -> Pattern:
    """Splits a shard pattern into its folder and the names in it. Raises DataError for an invalid pattern."""
    urls.refuse_commands(text)
    text = text.removeprefix("file://")
    if not text:
        raise DataError(
            "found an empty shard pattern; give a folder, a tar, or a pattern such as train-{000000..000010}.tar"
        )
    if urls.is_local(text) and os.path.isdir(urls.local_path(text)):  # False for a list longer than a file name
        return Pattern(text, _absolute(text), ALL)
    folder, slash, name = text.rpartition("/")
    if (
        not name.endswith((".tar", "*"))
        and not is_compressed(name)
        and not BRACES.search(name)
        and not WILDCARD.search(name)
    ):
        return Pattern(text, _absolute(text), ALL)
    there = urls.is_local(folder) and os.path.isdir(urls.local_path(folder))  # then its characters are literal
    if re.search(r"[*?{}]", folder) and not there:
        raise DataError(
            f"{text!r}: found a pattern for folders, but only the file name may be one; give a pattern per folder"
        )
    folder = (folder or "/") if slash else "."
    return Pattern(text, _absolute(folder), tuple(_tars(expand_braces(name))))


def expand_braces(text: str) -> list[str]:
    """Expands `a{01..03}b` and `a{x,y}b`, multiplying several groups, keeping leading zeros. Raises DataError."""
    match = BRACES.search(text)
    if match is None:
        if re.search(r"[{}]", text):
            raise DataError(f"{text!r}: unbalanced braces; write for example train-{{000000..000010}}.tar")
        return [text]
    bounds = RANGE.fullmatch(match[1])
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        if last - first >= MOST_NAMES:
            raise DataError(
                f"{text!r}: matches more than {MOST_NAMES:,} shards; use a smaller range, or * for all shards"
            )
        width = len(bounds[1]) if len(bounds[1]) == len(bounds[2]) or bounds[1].startswith("0") else 0
        step = 1 if last >= first else -1
        choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        raise DataError(f"{text!r}: {{{match[1]}}} is neither a range {{000..010}} nor a list {{a,b}}")
    head, tails = text[: match.start()], expand_braces(text[match.end() :])
    return [head + choice + tail for choice in choices for tail in tails]


def _absolute(folder: str) -> str:
    """An absolute path: workers of a job may run in other directories than the process that read the pattern."""
    return os.path.abspath(folder) if urls.is_local(folder) else folder.rstrip("/")


def _tars(names: list[str]) -> list[str]:
    """Adds `.tar` to globs such as `train-*`, which would match sidecars too."""
    return [f"{name}.tar" if name.endswith("*") else name for name in names]
