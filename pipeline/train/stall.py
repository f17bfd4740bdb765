"""A job without progress: each rank's stacks go to its log, and it ends, so that the job can start again."""

from __future__ import annotations

import contextlib
import faulthandler
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

SHARE = 0.1  # of the time-out: how exactly it is kept, and how often ranks exchange signs
SIGNS = "signs of life"
# Of collectives: the watch notices a stall long before, knows a rank that waits from one that hangs, and leaves stacks.
GROUP_TIMEOUT = timedelta(days=1)


class Store(Protocol):
    """What ranks share: `torch.distributed.Store`."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number that all ranks see; returns it."""


class StallWatch:
    """Ends this process when no rank has given a sign of life for `timeout_s` (give or take a fifth).

    A sign of life is a call of `beat`, growth of a number that is followed, or, once signs are shared, one of another
    rank: while one of them loads or assembles the finished model, the others wait for it, however long it takes.

    It stands outside the interpreter (`faulthandler`), so it also sees a rank that hangs in a collective, in a read, or
    with the interpreter's lock in its hands.
    """

    def __init__(self, timeout_s: float, log: Path) -> None:
        self._timeout_s = timeout_s
        self._file = log.open("a")
        self._armed = float("-inf")
        self._beats = 0
        self._followed: list[Callable[[], int]] = []
        self._store: Store | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self.beat()
        threading.Thread(target=self._look_around, name="stall", daemon=True).start()

    def beat(self) -> None:
        """A sign of life."""
        self._beats += 1
        if time.monotonic() - self._armed >= self._timeout_s * SHARE:
            self._arm()

    def progress(self, size: int) -> None:
        """`size` more bytes are done: a sign of life."""
        if size:
            self.beat()

    @contextmanager
    def following(self, number: Callable[[], int]) -> Iterator[None]:
        """Within this context a number that grows, of bytes read for instance, is a sign of life."""
        self._followed.append(number)
        try:
            yield
        finally:
            self._followed.remove(number)

    def share(self, store: Store) -> None:
        """Share signs of life with all ranks that share this store, which must be this watch's alone: it blocks."""
        self._store = store

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            faulthandler.cancel_dump_traceback_later()
            self._file.close()

    def _arm(self) -> None:
        with self._lock:
            if not self._closed.is_set():
                self._armed = time.monotonic()
                faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)

    def _look_around(self) -> None:
        mine = of_all = 0
        while not self._closed.wait(self._timeout_s * SHARE):
            seen, mine = mine, self._beats + sum(number() for number in list(self._followed))
            alive = mine != seen
            if self._store is not None:
                with contextlib.suppress(RuntimeError):  # rank 0, which holds it, is gone: this rank is on its own
                    before, of_all = of_all, self._store.add(SIGNS, int(alive))
                    alive = alive or of_all != before
            if alive:
                self._arm()
