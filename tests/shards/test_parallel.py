from __future__ import annotations

import os

import pytest

from pipeline.errors import DataError
from pipeline.shards import parallel
from pipeline.shards.parallel import map_shards, track


@pytest.mark.parametrize("workers", [1, 2])
def test_results_keep_the_order(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "IN_FLIGHT", 3)
    assert list(map_shards(abs, range(-10, 0), label="x", workers=workers)) == list(range(10, 0, -1))


def test_nothing_to_do() -> None:
    assert list(map_shards(abs, [], label="x")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_reaches_the_caller(workers: int) -> None:
    with pytest.raises(TypeError):
        list(map_shards(abs, ["a", "b"], label="x", workers=workers))  # type: ignore[arg-type]


def test_a_process_that_is_ended_is_one_sentence() -> None:
    with pytest.raises(DataError, match="indexing: the system killed a process"):
        list(map_shards(os._exit, [9, 9], label="indexing", workers=2))


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), 3, "work", "shards")) == list("abc")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(parallel, "LINE_EVERY_S", 0)
    assert list(track(iter("abc"), 3, "work", "shards")) == list("abc")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" shards")[0] for line in lines] == ["work: 1/3", "work: 2/3", "work: 3/3"]


def test_a_terminal_gets_a_bar() -> None:
    """A real pseudo-terminal, as rich looks at what standard error is."""
    import pty
    import subprocess
    import sys

    reader, writer = pty.openpty()
    code = "from pipeline.shards.parallel import track; print(list(track(iter('abc'), 3, 'writing', 'shards')))"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=writer, stdout=subprocess.PIPE, text=True, env=environment
    )
    os.close(writer)
    seen = os.read(reader, 65536).decode()
    os.close(reader)
    assert done.stdout.strip() == "['a', 'b', 'c']"
    assert "writing" in seen
    assert "3/3" in seen
