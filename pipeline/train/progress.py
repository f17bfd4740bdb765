"""A job's progress in a file that its driver polls, for work that the metrics ledger does not cover."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

NAME = "progress.json"  # in the job's folder
EVERY_S = 0.5


class Reached(NamedTuple):
    """The current activity and its progress: `done` of `total`; a total of 0 means unknown."""

    words: str
    done: int = 0
    total: int = 0


class ProgressFile:
    """Written by one rank, at most twice a second."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder, as on the other ranks, nothing is written."""
        self._folder, self._reached, self._written = folder, Reached(""), float("-inf")

    def begin(self, words: str, total: int = 0) -> None:
        """Start a new activity."""
        self._reached = Reached(words, 0, total)
        self._write()

    def advance(self) -> None:
        """Count one more of the total as done."""
        self._reached = self._reached._replace(done=self._reached.done + 1)
        if time.monotonic() - self._written >= EVERY_S:
            self._write()

    def beating(self, beat: Callable[[], None]) -> Callable[[], None]:
        """A function that calls `beat` and `advance`."""

        def both() -> None:
            beat()
            self.advance()

        return both

    def _write(self) -> None:
        if self._folder is None:
            return
        self._written = time.monotonic()
        draft = self._folder / f".{NAME}"
        draft.write_text(json.dumps(self._reached))
        os.replace(draft, self._folder / NAME)


def read_progress(folder: Path) -> Reached | None:
    """The contents of the file; None if there is no readable file yet."""
    try:
        return Reached(*json.loads((folder / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
