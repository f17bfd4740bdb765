from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.train.stall import StallWatch

PROGRAM = """
import sys, threading, time
from pathlib import Path
from pipeline.train.stall import StallWatch

def waits_for_a_peer(seconds):
    time.sleep(seconds)

def thread_of_another_kind():
    time.sleep(60)

threading.Thread(target=thread_of_another_kind, daemon=True).start()
watch = StallWatch(1.0, Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    watch.beat()
    time.sleep(0.05)
if sys.argv[3] == "stall":
    waits_for_a_peer(60)
watch.close()
time.sleep(1.5)
"""


def run(log: Path, beats: int, end: str) -> tuple[int, float]:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(log), str(beats), end], timeout=50, check=False)
    return done.returncode, time.monotonic() - began


def test_a_stalled_rank_leaves_all_its_stacks_and_ends(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    log.write_text("what was logged before\n")
    code, seconds = run(log, 40, "stall")  # two seconds of life first: twice the time-out
    assert code == 1
    assert seconds < 30
    text = log.read_text()
    assert text.startswith("what was logged before\n")
    assert "in waits_for_a_peer" in text
    assert "in thread_of_another_kind" in text


RANKS = """
import sys, threading, time
from datetime import timedelta
from pathlib import Path
from torch.distributed import TCPStore
from pipeline.train.stall import StallWatch

def waits_for_a_peer(store):
    store.wait(["loaded"], timedelta(seconds=60))

rank, port, log = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
store = TCPStore("127.0.0.1", port, 2, is_master=rank == 0, wait_for_workers=False)
watch = StallWatch(TIMEOUT_S, log)
watch.share(store.clone())
if rank == 0:
    read = [0]
    with watch.following(lambda: read[0]):
        for _ in range(30):
            read[0] += 1
            time.sleep(TIMEOUT_S / 10)
    store.set("loaded", "")
else:
    waits_for_a_peer(store)
print("loaded", flush=True)
threading.Event().wait(60)
"""


def test_ranks_wait_for_one_that_makes_progress_and_end_together_when_none_does(tmp_path: Path) -> None:
    program = RANKS.replace("TIMEOUT_S", "2.0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    logs = [tmp_path / f"rank-{rank}.log" for rank in range(2)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", program, str(rank), port, log], stdout=subprocess.PIPE, text=True)
        for rank, log in enumerate(logs)
    ]
    for rank, log in zip(ranks, logs, strict=True):
        assert rank.stdout is not None
        assert rank.stdout.readline() == "loaded\n", log.read_text()  # thrice the time-out later
    for rank, log in zip(ranks, logs, strict=True):
        assert rank.wait(timeout=30) == 1
        assert "Timeout (" in log.read_text()
        assert "in wait" in log.read_text()


def test_a_rank_that_ends_in_order_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    assert run(log, 2, "end")[0] == 0
    assert log.read_text() == ""


def test_only_bytes_are_progress(tmp_path: Path) -> None:
    watch = StallWatch(100.0, tmp_path / "rank.log")
    before = watch._beats
    watch.progress(0)
    assert watch._beats == before
    watch.progress(1)
    assert watch._beats == before + 1
    watch.close()


def test_beats_are_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[float] = []
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda timeout, **_: armed.append(timeout))
    watch = StallWatch(100.0, tmp_path / "rank.log")
    for _ in range(1000):
        watch.beat()
    assert armed == [100.0]
    watch.close()
