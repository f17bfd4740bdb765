"""Class names: one spelling for each, whichever system, file or folder they come from."""

from __future__ import annotations

import re
import unicodedata

INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters and lone surrogates


def class_name(text: str) -> str:
    r"""A class's name in NFC, so that composed and decomposed accents name one class.

    Bytes that are not UTF-8 (lone surrogates, as `os.fsdecode` gives them) and control characters become a visible
    `\xNN`, so that the name can be printed, stored and compared everywhere. Idempotent.
    """
    return INVISIBLE.sub(_visible, unicodedata.normalize("NFC", text))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape's stand-in for a byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
