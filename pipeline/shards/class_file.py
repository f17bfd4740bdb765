"""Class names as people give them: in a file, one a line, or as `a,b,c`."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.class_names import class_name, repeated
from pipeline.config.paths import expand
from pipeline.errors import DataError
from pipeline.targets import target_kinds

SUFFIXES = {".txt", ".csv", ".tsv", ".names", ".json", ".yaml"}  # of a file's name rather than a class's


def read_class_names(given: str) -> list[str]:
    """The names in a text file (UTF-8, or UTF-16 with its mark; blank lines do not count) or between commas.

    Raises DataError for a missing or unreadable file, for no names at all, and for a name that is given twice.
    """
    if given.startswith(("~", "$")) and not os.path.isfile(given):
        try:
            given = expand(given)
        except ValueError as error:
            raise DataError(f"--classes {given}: expected {error}") from None
    path = Path(given)
    if os.path.isfile(given):  # False, where Path.is_file raises, for a list longer than a file name may be
        place, names = "lines", _text(path).split("\n")
    elif "," not in given and ("/" in given or path.suffix.lower() in SUFFIXES):
        raise DataError(f"--classes {given}: no such file; correct the path, or give the names as a,b,c")
    else:
        place, names = "positions", given.split(",")
    numbered = {number: name for number, line in enumerate(names, 1) if (name := class_name(line))}
    if not numbered:
        raise DataError(f"--classes {given!r}: names no class; give a,b,c or a file with one name a line")
    found = list(numbered.values())
    if twice := repeated(found):
        name, numbers = twice
        where = " and ".join(str(list(numbered)[number]) for number in numbers)
        raise DataError(
            f"--classes {given}: {name!r} is given at {place} {where}, but class names must differ; rename one of them"
        )
    return found


def read_classes(given: Sequence[str]) -> list[str] | dict[str, list[str]] | None:
    """The names that `KIND=NAMES` options give, by kind; of one alone without a kind, the list.

    Raises DataError as `read_class_names`, and for several without kinds.
    """
    parted = [
        (kind, names) if kind in target_kinds() else ("", text)
        for text in given
        for kind, _, names in [text.partition("=")]
    ]
    if [kind for kind, _ in parted] == [""]:
        return read_class_names(parted[0][1])
    if any(not kind for kind, _ in parted):
        raise DataError(f"--classes: several need their kinds, KIND=NAMES; kinds: {', '.join(target_kinds())}")
    return {kind: read_class_names(names) for kind, names in parted} or None


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except OSError as error:
        raise DataError(f"--classes {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"--classes {path}: is not UTF-8 text; save it as UTF-8, one name a line") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
