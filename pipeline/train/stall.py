"""A rank that makes no progress: its stacks go to its log, and it ends, so that the job can start again."""

from __future__ import annotations

import faulthandler
import time
from pathlib import Path

REARM_SHARE = 0.1  # of the time-out: how exactly it is kept


class StallWatch:
    """Ends this process when `beat` has not been called for `timeout_s` (give or take a tenth).

    It stands outside the interpreter (`faulthandler`), so it also sees a rank that hangs in a collective, in a read, or
    with the interpreter's lock in its hands.
    """

    def __init__(self, timeout_s: float, log: Path) -> None:
        self._timeout_s = timeout_s
        self._file = log.open("a")
        self._armed = float("-inf")

    def beat(self) -> None:
        """A sign of life."""
        now = time.monotonic()
        if now - self._armed >= self._timeout_s * REARM_SHARE:
            self._armed = now
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
