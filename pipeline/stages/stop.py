"""Signals that ask a run to stop: the first lets it commit, the second ends it at once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType

from pipeline.errors import Interrupted
from pipeline.stages.progress import Progress

# A launcher may signal a job's script and its commands at the same time, and the script forwards its signals.
TOGETHER_S = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # SLURM sends USR1 ahead of a time limit


class StopRequest:
    """While entered, catches the signals; `asked` is the name of the first one received.

    Signals within TOGETHER_S of the first one count as one.
    """

    def __init__(self, progress: Progress) -> None:
        self.asked: str | None = None
        self._asked_at = 0.0
        self._progress = progress
        self._former: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopRequest:
        self._former = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.asked is None:
            self.asked, self._asked_at = name, time.monotonic()
            self._progress.say(f"{name}: committing a checkpoint, then stopping; send it again to stop at once")
            return
        if time.monotonic() - self._asked_at < TOGETHER_S:
            return
        self._progress.say(
            f"{name} again: stopping at once; the same command resumes from the last committed checkpoint"
        )
        os._exit(Interrupted.exit_code)
