"""Class names in a single spelling, whatever system, file or folder they come from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters and lone surrogates
AROUND = re.compile("^[\\s\ufeff]+|[\\s\ufeff]+$")  # white space and byte-order marks


def normalise_class_name(text: str) -> str:
    r"""A class's name in NFC, so that composed and decomposed accents name one class.

    Bytes that are not UTF-8 (lone surrogates, as from `os.fsdecode`) and control characters become a visible
    `\xNN`, so that the name can be printed, stored and compared everywhere. White space and byte-order marks around a
    name, which editors leave there, are stripped. Idempotent.
    """
    return visible(AROUND.sub("", unicodedata.normalize("NFC", text)))


def visible(text: str) -> str:
    r"""The text with control characters and bytes that are not UTF-8 as `\xNN`: fit for a line of any file."""
    return INVISIBLE.sub(_visible, text)


def repeated(names: Iterable[str]) -> tuple[str, list[int]] | None:
    """The first name that occurs more than once and its positions; None if all names differ."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return next(((name, found) for name, found in places.items() if len(found) > 1), None)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape's stand-in for a byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
