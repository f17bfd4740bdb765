"""How far a job is, in a file that its driver looks at: what no ledger of steps tells."""

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
    """What is being done, and how much of it: `done` of `total`; a total of 0 where nobody knows."""

    words: str
    done: int = 0
    total: int = 0


class ProgressFile:
    """Written by one rank, at most twice a second."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder nothing is written: what the other ranks have."""
        self._folder, self._reached, self._written = folder, Reached(""), float("-inf")

    def begin(self, words: str, total: int = 0) -> None:
        """Something else is done from now on."""
        self._reached = Reached(words, 0, total)
        self._write()

    def advance(self) -> None:
        """One more of the total."""
        self._reached = self._reached._replace(done=self._reached.done + 1)
        if time.monotonic() - self._written >= EVERY_S:
            self._write()

    def beating(self, beat: Callable[[], None]) -> Callable[[], None]:
        """`beat`, as one more of the total."""

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
    """What the file says; None where there is none yet."""
    try:
        return Reached(*json.loads((folder / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return None
