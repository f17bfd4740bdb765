"""Helpers for making shards from a user's own files: detecting images, rejected files and finished shards."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.config.class_names import visible
from pipeline.shards import store
from pipeline.shards.index import DatasetIndex
from pipeline.shards.index_check import INDEX_NAME
from pipeline.shards.index_file import decode_index

SIGNATURES = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
MOST_NAMES = 3  # in one line
LONGEST_STEM = 60  # keeps member names within the 100 bytes that a plain tar header holds


class Rejections:
    """The file that lists what was rejected and why, kept across interrupted runs; `anew` discards an earlier one."""

    def __init__(self, path: Path, *, anew: bool):
        self.path = path
        if anew:
            path.unlink(missing_ok=True)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
        self.reasons = dict(line.split("\t", 1) for line in lines if "\t" in line)

    def add(self, rejected: list[tuple[str, str]]) -> None:
        if rejected:
            self.reasons.update((visible(name), reason) for name, reason in rejected)
            text = "".join(f"{name}\t{reason}\n" for name, reason in sorted(self.reasons.items()))
            store.write_bytes(str(self.path), text.encode())


def image_fault(data: bytes) -> str | None:
    """Why a file is not an image, judging by its first bytes."""
    if SIGNATURES.match(data):
        return None
    return "is empty" if not data else "does not contain a PNG, JPEG or WebP image"


def listing_hash(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 of paths and sizes."""
    digest = hashlib.sha256()
    for path, size in files:
        digest.update(f"{path}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def earlier_index(out: Path) -> DatasetIndex | None:
    path = out / INDEX_NAME
    return decode_index(path.read_bytes(), str(out), older=True) if path.is_file() else None


def finished_shards(out: Path) -> set[str]:
    """Finished shards: all that exist, as they are written atomically, unless their size differs from the index."""
    index = earlier_index(out)
    indexed = dict(zip(index.names, index.sizes.tolist(), strict=True)) if index else {}
    return {name for name, (size, _) in store.list_sizes(str(out)).items() if size == indexed.get(name, size)}


def sample_key(position: int, name: str) -> str:
    """Unique by its number; keeps the file name readable, so that a sample can be traced to its source."""
    return f"{position:08d}-{re.sub('[^A-Za-z0-9_-]', '_', Path(name).stem)[:LONGEST_STEM]}"


def write_names(path: Path, names: Iterable[str]) -> None:
    """Writes one name per line: the number of a name is that of its line, from 0."""
    data = "".join(f"{name}\n" for name in names).encode()
    if not path.is_file() or path.read_bytes() != data:
        store.write_bytes(str(path), data)


def digest_of(parts: Iterable[bytes]) -> str:
    """SHA-256 of the parts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def stem(path: str) -> str:
    """A path without its suffix."""
    folder, slash, base = path.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def shortlist(names: list[str]) -> str:
    """A printable list of names or paths, truncated."""
    more = f", ... {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(visible, names[:MOST_NAMES])) + more
