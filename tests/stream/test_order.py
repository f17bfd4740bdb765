from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.stream.order import Order, check_lanes, share_of_lanes, share_of_step

shard_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    counts = np.array(draw(shard_sizes))
    lanes = draw(st.integers(1, min(int(counts.sum()), 16)))
    return Order(counts, lanes=lanes, window=draw(st.integers(1, 20)), seed=draw(st.integers(0, 2**63)))


def identities(order: Order, slots: np.ndarray) -> list[tuple[int, int]]:
    shard, sample = order.samples(slots)
    return list(zip(shard.tolist(), sample.tolist(), strict=True))


@given(orders(), st.integers(0, 5))
def test_an_epoch_holds_each_sample_at_most_once_and_leaves_out_fewer_than_c(order: Order, epoch: int) -> None:
    slots = np.arange(epoch * order.epoch_slots, (epoch + 1) * order.epoch_slots)
    seen = identities(order, slots)
    assert len(set(seen)) == len(seen) == order.num_samples - order.left_out
    assert 0 <= order.left_out < order.lanes
    assert all(0 <= sample < order._counts[shard] for shard, sample in seen)


@given(orders(), st.integers(0, 300), st.integers(1, 100))
def test_any_stretch_equals_the_same_stretch_of_the_whole(order: Order, start: int, length: int) -> None:
    whole = identities(order, np.arange(start + length))
    fresh = Order(order._counts, lanes=order.lanes, window=order.window, seed=order.seed)
    assert identities(fresh, np.arange(start, start + length)) == whole[start:]


@given(orders(), st.data())
def test_slots_may_be_asked_for_in_any_order(order: Order, data: st.DataObject) -> None:
    slots = np.arange(3 * order.epoch_slots)
    shuffled = np.array(data.draw(st.permutations(slots.tolist())))
    straight = identities(order, slots)
    assert identities(order, shuffled) == [straight[slot] for slot in shuffled.tolist()]


def interrupted(call: Callable[[], Any], at: int, function: str, other: Callable[[], Any]) -> tuple[Any, bool]:
    """What `call` returns when `other` runs, as another thread might, before the instruction `at` of `function`.

    Also whether the function came that far.
    """
    instructions = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal instructions
        if frame.f_code.co_name != function:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            if instructions == at:
                other()
            instructions += 1
        return trace

    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        return call(), instructions > at
    finally:
        sys.settrace(tracer)


@given(
    held=st.lists(st.integers(0, 4), max_size=3),
    asked=st.integers(0, 4),
    others=st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
def test_reading_threads_may_stand_in_any_epochs_at_once(held: list[int], asked: int, others: list[int]) -> None:
    """A batch may span many epochs of a tiny data set, and each window is read by a thread of its own."""

    def order() -> Order:
        fresh = Order(np.array([2, 1]), lanes=2, window=2, seed=0)
        for epoch in held:
            fresh.window_samples(epoch, 0, 0)
        return fresh

    expected = [column.tolist() for column in order().window_samples(asked, 1, 0)]
    at, reached = 0, True
    while reached:
        shared = order()

        def others_read(shared: Order = shared) -> None:
            for epoch in others:
                shared.window_samples(epoch, 0, 0)

        def read(shared: Order = shared) -> list[list[int]]:
            return [column.tolist() for column in shared.window_samples(asked, 1, 0)]

        found, reached = interrupted(read, at, "_epoch", others_read)
        assert found == expected
        at += 1


@given(orders())
def test_windows_tile_every_lane(order: Order) -> None:
    for lane in range(order.lanes):
        place = order.place(lane, np.arange(2 * order.lane_samples))
        expected, turn = (0, 0), 0
        while turn < 2 * order.lane_samples:
            epoch, window, length = (int(column[turn]) for column in (place.epoch, place.window, place.length))
            assert (epoch, window) == expected
            assert place.offset[turn : turn + length].tolist() == list(range(length))
            assert 0 < length <= order.window
            assert order.window_start(lane, window) == turn % order.lane_samples
            assert len(order.window_samples(epoch, lane, window)[0]) == length
            expected, turn = order.window_after(epoch, lane, window), turn + length


@given(
    lanes=st.integers(1, 40),
    world=st.integers(1, 8),
    workers=st.integers(1, 4),
    first=st.integers(0, 500),
    g=st.integers(1, 90),
)
def test_ranks_and_workers_divide_each_step_among_them(
    lanes: int, world: int, workers: int, first: int, g: int
) -> None:
    shares = [
        share_of_step(first, g, lanes, rank=r, world_size=world, worker=k, workers=workers)
        for r in range(world)
        for k in range(workers)
    ]
    assert sorted(np.concatenate(shares).tolist()) == list(range(first, first + g))
    owned = [
        share_of_lanes(lanes, rank=r, world_size=world, worker=k, workers=workers)
        for r in range(world)
        for k in range(workers)
    ]
    assert all(set((slots % lanes).tolist()) <= set(mine.tolist()) for slots, mine in zip(shares, owned, strict=True))


@given(orders(), st.data())
def test_excluded_samples_are_gone_and_nothing_else_is(order: Order, data: st.DataObject) -> None:
    counts = order._counts
    every = [(shard, sample) for shard in range(len(counts)) for sample in range(counts[shard])]
    out = set(data.draw(st.lists(st.sampled_from(every), max_size=len(every) - 1)))
    excluded = {shard: np.array([i for s, i in out if s == shard], np.int64) for shard in {s for s, _ in out}}
    fewer = Order(counts, lanes=1, window=order.window, seed=order.seed, excluded=excluded)
    assert set(identities(fewer, np.arange(fewer.epoch_slots))) == set(every) - out


def test_epochs_differ_in_order_and_in_what_they_leave_out() -> None:
    order = Order(np.array([50, 50, 23]), lanes=10, window=8, seed=3)
    epochs = [identities(order, np.arange(e * order.epoch_slots, (e + 1) * order.epoch_slots)) for e in range(10)]
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert len({frozenset(epoch) for epoch in epochs}) > 5


def test_batches_of_class_sorted_shards_mix_nearly_as_a_uniform_shuffle_does() -> None:
    """100 classes of 1,000 samples, a shard per class: the worst case; entropy of labels per batch of 256."""
    order = Order(np.full(100, 1000), lanes=64, window=512, seed=0)
    labels = order.samples(np.arange(256 * 300))[0].reshape(-1, 256)
    uniform = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 1000))[: 256 * 300].reshape(-1, 256)

    def entropy(batches: np.ndarray) -> float:
        shares = [np.bincount(batch, minlength=100) / 256 for batch in batches]
        return float(np.mean([-(p[p > 0] * np.log(p[p > 0])).sum() for p in shares]))

    assert entropy(labels) >= 0.97 * entropy(uniform)


def test_the_order_is_pinned() -> None:
    """A change here breaks the resume of every run."""
    order = Order(np.array([5, 0, 7, 1]), lanes=3, window=2, seed=42)
    assert order.samples(np.arange(8))[0].tolist() == [0, 3, 2, 0, 0, 2, 0, 2]
    assert order.samples(np.arange(8))[1].tolist() == [1, 0, 2, 0, 4, 3, 2, 0]


def test_lanes_beyond_the_samples_are_refused() -> None:
    with pytest.raises(DataError, match=r"64 lanes need .* has 12; set data\.lanes to at most 12"):
        Order(np.array([5, 7]), lanes=64, window=8, seed=0)


def test_ranks_beyond_the_lanes_are_refused() -> None:
    with pytest.raises(DataError, match="3 lanes cannot be split among 4 ranks"):
        check_lanes(3, 4)


def test_a_rank_of_a_huge_job_finds_its_first_samples_at_once() -> None:
    counts = np.full(200_000, 10_000)
    begin = time.process_time()
    order = Order(counts, lanes=32_768, window=512, seed=0)
    slots = share_of_step(7 * order.epoch_slots // 2, 32_768, 32_768, rank=4095, world_size=4096, worker=7, workers=8)
    order.samples(slots)
    assert time.process_time() - begin < 0.5
