"""Compressed tars allow no random access to samples, so errors give the command that unpacks them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from pipeline.shards import urls

ENDING = re.compile(r"(.+)\.(?:tar\.(gz|bz2|xz|zst|lz4)|t(gz|bz2|xz|zst))", re.DOTALL)
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
UNPACK = {"gz": "gunzip -k", "bz2": "bunzip2 -k", "xz": "unxz -k", "zst": "unzstd", "lz4": "unlz4 -m"}


def is_compressed(name: str) -> bool:
    """Whether a file's name is that of a compressed tar."""
    return ENDING.fullmatch(name) is not None


def compressed_with(data: bytes) -> str | None:
    """The compression that a file's first bytes indicate, whatever its name."""
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)


def unpacked(name: str) -> str:
    """The name of a compressed tar once unpacked."""
    match = ENDING.fullmatch(name)
    assert match is not None
    return f"{match[1]}.tar"


def still_packed(present: Iterable[str]) -> list[str]:
    """The compressed tars among a folder's files whose plain tar is missing."""
    known = set(present)
    return sorted(name for name in known if is_compressed(name) and unpacked(name) not in known)


def advice(folder: str, names: list[str]) -> str:
    """A message: why these compressed tars of a folder are not read, and the command that unpacks the first's kind."""
    match = ENDING.fullmatch(names[0])
    assert match is not None
    tool, ending = UNPACK[match[2] or match[3]], names[0].removeprefix(match[1])
    where = f"{shlex.quote(folder)}/*{ending}" if urls.is_local(folder) else f"*{ending}"
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return (
        f"{urls.join(folder, names[0])}: a compressed tar{more}, but samples can only be read from uncompressed "
        f"ones; run `{tool} {where}` and index the .tar files"
    )
