"""Chooses which of a user's images are for validation: a random share of them, or those that a file names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pipeline.errors import DataError
from pipeline.shards.make._files import shortlist, stem
from pipeline.shards.make._samples import WriteOptions

VAL = "val"

# Options of the makers that split.
Val = Annotated[str | None, "images for val-*.tar: a share such as 0.05, or a file that lists them"]
Seed = Annotated[int, "seed for spreading images over shards, and for --val"]


def split_rows(names: Sequence[str], options: WriteOptions) -> dict[str, list[int]]:
    """Rows by the prefix of their shards: `options.val`, a share or a file of names, selects those in `val`.

    A share is drawn by hashing the seed and each name. A file names images with or without folders and suffix, one per
    line. Raises DataError for a share or file that leaves either side empty.
    """
    if options.val is None:
        return {options.prefix: list(range(len(names)))}
    if options.prefix == VAL:
        raise DataError(f"--val {options.val}: its images go to {VAL}-*.tar, so --prefix must be another name")
    chosen = (
        _share(names, float(options.val), options.seed) if _is_number(options.val) else _named(names, Path(options.val))
    )
    if not 0 < len(chosen) < len(names):
        raise DataError(
            f"--val {options.val}: would take {len(chosen):,} of {len(names):,} images; leave some for both splits"
        )
    return {options.prefix: [row for row in range(len(names)) if row not in chosen], VAL: sorted(chosen)}


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def _share(names: Sequence[str], share: float, seed: int) -> set[int]:
    def draw(row: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{names[row]}".encode(errors="surrogateescape")).digest()

    return set(sorted(range(len(names)), key=draw)[: round(share * len(names))])


def _named(names: Sequence[str], path: Path) -> set[int]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--val {path}: neither a share between 0 and 1 nor a readable file ({error})") from None
    wanted = {spelling for line in lines if line.strip() for spelling in (line.strip(),)}
    known: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        for spelling in {name, stem(name), name.rpartition("/")[2], stem(name.rpartition("/")[2])}:
            known.setdefault(spelling, []).append(row)
    unknown = sorted(name for name in wanted if name not in known and stem(name) not in known)
    if unknown:
        raise DataError(f"--val {path}: lists {shortlist(unknown)}, which are not among the images; correct the names")
    return {row for name in wanted for row in known.get(name, known.get(stem(name), []))}
