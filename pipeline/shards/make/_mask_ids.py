"""Maps the ids in a user's masks to classes: unchanged, or by a textual map."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import DataError

MOST_IDS = 1 << 16  # of a 16-bit PNG
IGNORED, SMALL = -1, 256
ENTRY = re.compile(r"(\d+)(?:-(\d+))?\s*(?:=|:|\s|->)\s*(\d+|ignore)")
COMMENT = re.compile("#.*")
MEANT = "write OLD=NEW, FIRST-LAST=NEW for a range, or OLD=ignore, separated by commas or one per line"


@dataclass(frozen=True)
class Ids:
    """`table`: the class of each id; -1 if ignored, `num_classes` or more if there is no such class."""

    table: np.ndarray  # int32 [65,536]
    num_classes: int

    @property
    def ignore(self) -> int:
        """The value of ignored pixels in the shards."""
        return SMALL - 1 if self.num_classes < SMALL else MOST_IDS - 1

    def outside(self, ids: np.ndarray) -> list[int]:
        """The ids in a mask that belong to no class."""
        found = np.unique(ids)
        return found[self.table[found] >= self.num_classes].tolist()

    def stored(self, ids: np.ndarray) -> np.ndarray | None:
        """The ids as stored in the shards, uint8 or uint16; None if unchanged."""
        classes = self.table[ids]
        classes[classes == IGNORED] = self.ignore
        if np.array_equal(classes, ids):
            return None
        return classes.astype(np.uint8 if self.ignore < SMALL else np.uint16)


def ids_of(num_classes: int, ignore: int | None, remap: str | None) -> Ids:
    """Maps ids to classes. With `remap`, ids that it does not name are ignored; without it, ids are classes.

    Args:
        num_classes: number of classes.
        ignore: the id of ignored pixels; default: 255, or 65535 if there are more classes.
        remap: entries as described in the error message; see `remap_text`.

    Raises:
        DataError: for an invalid map, or an ignored id that belongs to a class.
    """
    table = np.arange(MOST_IDS, dtype=np.int32)
    if remap is not None:
        table[:] = IGNORED
        for old, new in read_remap(remap).items():
            if new >= num_classes:
                raise DataError(
                    f"--remap: {old} becomes {new}, but --classes names {num_classes}, 0 to {num_classes - 1}; name "
                    "all classes, or correct the map"
                )
            table[old] = new
    if ignore is None:
        ignore = Ids(table, num_classes).ignore
    elif not 0 <= ignore < MOST_IDS or (remap is None and ignore < num_classes):
        raise DataError(
            f"--ignore {ignore}: this id is a class, as --classes names {num_classes}; choose an id without a class, "
            f"or set which ids are classes, such as --remap 1-{num_classes}=0, which ignores all others"
        )
    if remap is None:
        table[ignore] = IGNORED
    return Ids(table, num_classes)


def remap_text(given: str | None) -> str | None:
    """The entries of `--remap`, which gives them or names a file of them. Raises DataError."""
    if given is None or not (Path(given).suffix or "/" in given):
        return given
    try:
        return Path(given).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--remap {given}: cannot be read ({error}); {MEANT}") from None


def read_remap(text: str) -> dict[int, int]:
    """Parses {id: class or -1}. Raises DataError."""
    found: dict[int, int] = {}
    for part in re.split("[,\n]", COMMENT.sub("", text)):
        if not (entry := part.strip()):
            continue
        match = ENTRY.fullmatch(entry)
        if match is None:
            raise DataError(f"--remap: found {entry!r}; {MEANT}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < MOST_IDS:
            raise DataError(f"--remap: {entry!r} is not a range of ids from 0 to {MOST_IDS - 1}; {MEANT}")
        for step, old in enumerate(range(first, last + 1)):
            if old in found:
                raise DataError(f"--remap: {old} is mapped twice; keep one of them")
            found[old] = IGNORED if match[3] == "ignore" else int(match[3]) + step
    if not found:
        raise DataError(f"--remap: found no mapping; {MEANT}")
    return found
