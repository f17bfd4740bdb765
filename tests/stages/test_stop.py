from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from pipeline.errors import Interrupted
from pipeline.stages.stop import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_that_come_together_are_one_and_a_later_one_ends_the_run(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    ended: list[int] = []
    now = [100.0]
    monkeypatch.setattr("pipeline.stages.stop.time.monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.getsignal(number)
    with StopRequest(SimpleNamespace(say=said.append)) as stop:  # type: ignore[arg-type]
        assert stop.asked is None
        for now[0] in (100.0, 100.1, 101.9):
            os.kill(os.getpid(), number)
        assert (stop.asked, ended) == (number.name, [])
        assert [text.partition(":")[0] for text in said] == [number.name]
        now[0] = 103.0
        os.kill(os.getpid(), number)
        assert ended == [Interrupted.exit_code]
        assert said[-1].startswith(f"{number.name} again: stopping at once")
    assert signal.getsignal(number) == before
