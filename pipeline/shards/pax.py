"""Pax records, which precede a member of a tar and replace or extend what its header says.

POSIX.1-2001, and the keys of GNU tar, libarchive, star and Solaris.
"""

from __future__ import annotations

import re

COUNT = re.compile(rb"\d{1,18}")
SPARSE = re.compile(r"GNU\.sparse\..*|SCHILY\.realsize|SUN\.holesdata")  # without the holes, or with a map before it
PART = re.compile(r"GNU\.volume\.(filename|offset|size)|SCHILY\.offset")  # the rest of a file that began in another tar
SHARED = "path", "size"  # may not be said of all members at once: samples are read without the start of their tar

Unsupported = tuple[str, str]  # what a tar contains that cannot be read, and how to write it otherwise

SPARSE_FILE: Unsupported = ("a sparse file", "write it without tar's --sparse, or with bsdtar's --no-read-sparse")
PART_OF_FILE: Unsupported = ("a part of a file", "write it without tar's --multi-volume")
SHARED_HEADER: Unsupported = ("a name or size for all its members", "write it with a header for each")


def parse_pax(record: bytes) -> dict[str, str]:
    """The values of a record by key: lines of `LENGTH KEY=VALUE`, where LENGTH counts the whole line and its newline.

    Raises ValueError if it is damaged.
    """
    values = {}
    while record.strip(b"\0"):
        length, space, _ = record.partition(b" ")
        if not space or not COUNT.fullmatch(length) or not len(length) + 2 < int(length) <= len(record):
            raise ValueError("damaged")
        key, _, value = record[len(length) + 1 : int(length) - 1].partition(b"=")
        values[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        record = record[int(length) :]
    return values


def size_in(pax: dict[str, str]) -> int | None:
    """The size of the member in bytes, if the record has it. Raises ValueError if it is damaged."""
    size = pax.get("size")
    if size is not None and not COUNT.fullmatch(size.encode("utf-8", "surrogateescape")):
        raise ValueError("damaged")
    return None if size is None else int(size)


def unreadable(pax: dict[str, str], shared: bool) -> Unsupported | None:
    """Why the content of a member is not the bytes after its header; `shared` if the record is for all members."""
    if any(SPARSE.fullmatch(key) for key in pax):
        return SPARSE_FILE
    if any(PART.fullmatch(key) for key in pax):
        return PART_OF_FILE
    return SHARED_HEADER if shared and not pax.keys().isdisjoint(SHARED) else None
