"""A thread that prefetches the next items of an iterator."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Iterates over a generator that runs in its own thread, up to `depth` items ahead.

    The generator's exception is raised in place of the item. `close` stops the thread, which closes the generator and
    thus releases its resources there. The thread runs `prepare` first.
    """

    def __init__(
        self, source: Generator[Item, None, None], depth: int = 2, prepare: Callable[[], None] | None = None
    ) -> None:
        self._source, self._depth, self._prepare = source, depth, prepare
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread must not be in the middle of a batch when the interpreter shuts down

    def __iter__(self) -> Prefetcher[Item]:
        return self

    def __next__(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended or self._closed)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def __enter__(self) -> Prefetcher[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop after the item in progress; may be called repeatedly."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
            for item in self._source:
                with self._changed:
                    self._items.append(item)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._items) < self._depth or self._closed)
                    if self._closed:
                        break
        except BaseException as error:  # any exception is raised in the consumer
            self._error = error
        finally:
            self._source.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()
