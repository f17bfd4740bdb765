from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.shards.index import load_offsets
from pipeline.stream import read
from pipeline.stream.order import Order
from pipeline.stream.read import SampleReader, WindowReader


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int]]]:
    """The ranged reads made, which are real ones."""
    made = []
    real = read.read_range

    def recording(url: str, start: int, stop: int) -> bytes:
        made.append((url, start, stop))
        return real(url, start, stop)

    monkeypatch.setattr(read, "read_range", recording)
    return made


def test_neighbours_share_a_read_in_whatever_order_they_are_asked_for(uneven, ranges) -> None:
    shards, samples = np.array([3, 0, 3, 2, 3, 0]), np.array([7, 5, 9, 0, 8, 7])
    raw = SampleReader(uneven).read(shards, samples)
    assert [raw.members(i)[0] for i in range(6)] == ["s28", "s5", "s30", "s20", "s29", "s7"]
    assert [raw.where(i) for i in (0, 3)] == [("train-000003.tar", 7), ("train-000002.tar", 0)]
    assert len(ranges) == 4  # 0/5, 0/7, 2/0, and 3/7 to 3/9


def test_nothing_asked_nothing_read(uneven, ranges) -> None:
    assert len(SampleReader(uneven).read(np.array([], int), np.array([], int))) == 0
    assert ranges == []


def test_windows_are_read_once_ahead_of_time_and_forgotten(uneven, ranges) -> None:
    order = Order(uneven.counts, lanes=1, window=16, seed=0)
    windows = WindowReader([SampleReader(uneven)], [order])
    windows.start([(0, 0, 0, 0)])
    for turn in range(order.lane_samples):
        epoch, lane, window, offset, length = (int(number) for number in order.place(0, turn))
        samples = windows.get((0, epoch, lane, window), offset, length)
        assert len(samples) == length
        shard, number = (int(array[0]) for array in order.samples(np.array([turn])))
        assert samples.where(offset) == (uneven.names[shard], number)
        assert len(windows._coming) <= 1
    following = windows.get((0, 1, 0, 0), 0, 16)
    windows.close()
    every = sum(int(offsets[-1] - offsets[0]) for offsets in map(load_offsets, uneven.shards))
    assert sum(stop - start for _, start, stop in ranges) == every + sum(map(len, following._slices))
