"""Calls a function every few seconds, from a thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger(__name__)


class Periodic:
    """While entered, calls a function every few seconds; exiting calls it a last time.

    Args:
        function: an exception of it is logged, and the next call comes anyway.
        at_once: whether the first call comes when the context is entered, instead of `every_s` later.
    """

    def __init__(self, function: Callable[[], None], every_s: float, *, at_once: bool = True) -> None:
        self._function, self._every_s, self._at_once = function, every_s, at_once
        self._ended = threading.Event()
        self.called = threading.Event()  # set after the first call
        self._thread = threading.Thread(target=self._run, name=getattr(function, "__name__", None), daemon=True)

    def __enter__(self) -> Periodic:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        ended = not self._at_once and self._ended.wait(self._every_s)
        while not ended:
            self._call()
            self.called.set()
            ended = self._ended.wait(self._every_s)
        self._call()

    def _call(self) -> None:
        try:
            self._function()
        except Exception:
            logger.exception("%s failed", self._thread.name)
