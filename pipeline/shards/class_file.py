"""Class names given by users: in a file, one per line, or as `a,b,c`."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.class_names import normalise_class_name, repeated
from pipeline.config.fields import allowed
from pipeline.config.paths import expand
from pipeline.errors import DataError
from pipeline.targets import target_kinds

SUFFIXES = {".txt", ".csv", ".tsv", ".names", ".json", ".yaml"}  # of a file name rather than a class name


def read_class_names(given: str) -> list[str]:
    """The names in a text file (UTF-8, or UTF-16 with a BOM; blank lines are ignored) or between commas.

    Raises DataError for a missing or unreadable file, no names at all, or a duplicate name.
    """
    if given.startswith(("~", "$")) and not os.path.isfile(given):
        try:
            given = expand(given)
        except ValueError as error:
            raise DataError(f"--classes {given}: expected {error}") from None
    path = Path(given)
    if os.path.isfile(given):  # unlike Path.is_file, does not raise for a list too long for a file name
        place, names = "lines", _text(path).split("\n")
    elif "," not in given and ("/" in given or path.suffix.lower() in SUFFIXES):
        raise DataError(f"--classes {given}: no such file; correct the path, or give the names as a,b,c")
    else:
        place, names = "positions", given.split(",")
    numbered = {number: name for number, line in enumerate(names, 1) if (name := normalise_class_name(line))}
    if not numbered:
        raise DataError(f"--classes {given!r}: found no class names; give a,b,c or a file with one name per line")
    found = list(numbered.values())
    if twice := repeated(found):
        name, numbers = twice
        where = " and ".join(str(list(numbered)[number]) for number in numbers)
        raise DataError(
            f"--classes {given}: {name!r} appears at {place} {where}, but class names must differ; rename one of them"
        )
    return found


def read_classes(given: Sequence[str]) -> list[str] | dict[str, list[str]] | None:
    """The names in `KIND=NAMES` options, by kind; a plain list for a single option without a kind.

    Raises DataError like `read_class_names`, for an unknown kind, and if one of several options has no kind.
    """
    kinds = target_kinds()
    parted = [
        (kind, names) if kind in kinds else ("", text) for text in given for kind, _, names in [text.partition("=")]
    ]
    for kind, text in parted:
        name, equals, _ = text.partition("=")
        if not kind and equals and name.isidentifier() and not os.path.isfile(text):
            raise DataError(f"--classes {text}: {name!r} is no kind of label; {allowed(name, kinds)}")
    if [kind for kind, _ in parted] == [""]:
        return read_class_names(parted[0][1])
    if any(not kind for kind, _ in parted):
        raise DataError(f"--classes: found several; give each with its kind, KIND=NAMES; kinds: {', '.join(kinds)}")
    return {kind: read_class_names(names) for kind, names in parted} or None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except OSError as error:
        raise DataError(f"--classes {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"--classes {path}: not UTF-8 text; save it as UTF-8, one name per line") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
