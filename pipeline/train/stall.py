"""Detection of a job without progress: each rank logs its stacks and exits, so that the job can restart."""

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

SHARE = 0.1  # of the timeout: the precision at which it is kept, and how often ranks exchange signs of life
SIGNS = "signs of life"
# Timeout of collectives: the watch detects a stall long before, tells waiting ranks from hung ones, and logs stacks.
GROUP_TIMEOUT = timedelta(days=1)


class Store(Protocol):
    """A store shared by the ranks: `torch.distributed.Store`."""

    def add(self, key: str, amount: int) -> int:
        """Add to a number that all ranks share; returns the sum."""


class StallWatch:
    """Ends this process when no rank has given a sign of life for `timeout_s` (give or take a fifth).

    A sign of life is a call of `beat`, growth of a followed number, or, once signs are shared, a sign of another rank:
    while one rank loads or assembles the finished model, the others wait for it, however long it takes.

    It runs outside the interpreter (`faulthandler`), so it also catches a rank that hangs in a collective, in a read,
    or while holding the interpreter lock.
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
        """Give a sign of life."""
        self._beats += 1
        if time.monotonic() - self._armed >= self._timeout_s * SHARE:
            self._arm()

    def progress(self, size: int) -> None:
        """Give a sign of life if `size`, the number of bytes processed, is positive."""
        if size:
            self.beat()

    @contextmanager
    def following(self, number: Callable[[], int]) -> Iterator[None]:
        """Within this context, growth of this number, such as of bytes read, is a sign of life."""
        self._followed.append(number)
        try:
            yield
        finally:
            self._followed.remove(number)

    def share(self, store: Store) -> None:
        """Share signs of life with all ranks through this store, which nothing else may use, as calls block."""
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
                with contextlib.suppress(RuntimeError):  # rank 0, which hosts the store, is gone
                    before, of_all = of_all, self._store.add(SIGNS, int(alive))
                    alive = alive or of_all != before
            if alive:
                self._arm()
