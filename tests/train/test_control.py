from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config.training import CheckpointConfig
from pipeline.errors import Interrupted
from pipeline.train.control import Control
from pipeline.train.job import INTERRUPT, RESIZE, STOP, RankContext, WorkersChange
from pipeline.train.stall import StallWatch

pytestmark = pytest.mark.usefixtures("one_rank")


class Clock:
    """A monotonic clock that a test moves; the time of day beside it jumps at every look."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1e9 - 7200 * self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.train.control.time", clock)
    return clock


def control(folder: Path, leaving: tuple[str, ...] = (), **checkpoint: Any) -> Control:
    stage = SimpleNamespace(checkpoint=CheckpointConfig(**checkpoint))
    job = SimpleNamespace(folder=folder, stage=stage)
    return Control(job, RankContext(StallWatch(1e6, folder / "log"), lambda: leaving), torch.device("cpu"))


def test_nothing_asked_nothing_done(tmp_path: Path, clock: Clock) -> None:
    answer = control(tmp_path).look_collective(1)
    assert (answer.save, answer.leave) == (False, None)


def test_a_wish_to_stop_is_heard(tmp_path: Path, clock: Clock) -> None:
    branch = tmp_path / "runs" / "quick" / "stages" / "pretrain" / "micro"
    branch.mkdir(parents=True)
    (branch / STOP).write_text(INTERRUPT)
    leave = control(branch).look_collective(1).leave
    assert type(leave) is Interrupted
    assert str(leave) == "pretrain/micro: stopped on request after a commit"


def test_room_for_more_workers_is_heard(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / STOP).write_text(RESIZE)
    leave = control(tmp_path).look_collective(1).leave
    assert isinstance(leave, WorkersChange)
    assert leave.leaving == ()


def test_nodes_about_to_go_are_asked_for_now_and_then(tmp_path: Path, clock: Clock) -> None:
    looking = control(tmp_path, leaving=("node-a",))
    assert looking.look_collective(1).leave is None
    clock.now += 5
    leave = looking.look_collective(2).leave
    assert isinstance(leave, WorkersChange)
    assert leave.leaving == ("node-a",)
    assert "1 node(s)" in str(leave)


def test_time_to_save_is_told_by_the_monotonic_clock(tmp_path: Path, clock: Clock) -> None:
    looking = control(tmp_path, every_minutes=2)
    clock.now += 119
    assert not looking.look_collective(1).save
    clock.now += 2
    assert looking.look_collective(2).save
    looking.saved()
    clock.now += 119
    assert not looking.look_collective(3).save


def test_looks_come_about_once_a_second(tmp_path: Path, clock: Clock) -> None:
    looking = control(tmp_path)
    assert looking.is_due(1001)
    looking.look_collective(1001)  # resumed: how fast it goes is not known yet
    assert looking.is_due(1002)
    clock.now += 0.5
    looking.look_collective(1051)  # 100 steps a second
    assert [looking.is_due(step) for step in (1052, 1150, 1151)] == [False, False, True]
    clock.now += 300
    looking.look_collective(1153)  # slower than one step a second: at every one of them
    assert looking.is_due(1154)
