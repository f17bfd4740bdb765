from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.mixture import Mixture
from pipeline.stream.order import Order


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    lanes = draw(st.integers(1, 12))
    orders = []
    for seed in range(draw(st.integers(1, 4))):
        counts = np.array(draw(st.lists(st.integers(lanes, 40), min_size=1, max_size=3)))
        orders.append(Order(counts, lanes=lanes, window=draw(st.integers(1, 9)), seed=seed))
    weights = draw(st.lists(st.integers(1, 7), min_size=len(orders), max_size=len(orders)))
    return Mixture(orders, weights, seed=draw(st.integers(0, 100)))


def sources(mixture: Mixture, stop: int) -> np.ndarray:
    return np.array([spot.source for spot in mixture.spots(np.arange(stop))])


@given(mixtures())
def test_weights_are_exact_in_every_block_and_in_every_lane(mixture: Mixture) -> None:
    found, block = sources(mixture, 6 * mixture.block * mixture.lanes), mixture.block
    for row in [found, *(found[lane :: mixture.lanes] for lane in range(mixture.lanes))]:
        counts = [np.bincount(part, minlength=len(mixture.orders)).tolist() for part in row.reshape(-1, block)]
        assert counts == [mixture.weights] * (len(row) // block)


@settings(max_examples=50)
@given(mixtures(), st.data())
def test_counts_spots_and_slots_agree(mixture: Mixture, data: st.DataObject) -> None:
    stop = 4 * mixture.block * mixture.lanes
    spots = mixture.spots(np.arange(stop))
    turns: Counter[tuple[int, int]] = Counter()
    for slot, spot in enumerate(spots):
        order = mixture.orders[spot.source]
        turn = spot.epoch * order.lane_samples + order.window_start(spot.lane, spot.window) + spot.offset
        assert turn == turns[spot.source, spot.lane], "each data set passes through each lane without a gap"
        turns[spot.source, spot.lane] += 1
        assert mixture.slot_of(spot, spot.offset) == slot
    some = data.draw(st.lists(st.integers(0, stop - 1), max_size=20))
    assert mixture.spots(np.array(some, np.int64)) == [spots[slot] for slot in some]
    start = data.draw(st.integers(0, stop))
    before = Counter(spot.source for spot in spots[:start])
    assert mixture.counts(start) == [before[source] for source in range(len(mixture.orders))]


@settings(max_examples=50)
@given(mixtures(), st.integers(0, 60))
def test_next_turns_say_which_windows_a_resume_needs_first(mixture: Mixture, start: int) -> None:
    spots = mixture.spots(np.arange(start, start + 2 * mixture.block * mixture.lanes))
    for source, place in mixture.next_turns(start, np.arange(mixture.lanes)):
        for lane in range(mixture.lanes):
            first = next(spot for spot in spots if (spot.source, spot.lane) == (source, lane))
            assert (first.epoch, first.window, first.offset) == (
                place.epoch[lane],
                place.window[lane],
                place.offset[lane],
            )


def test_one_data_set_is_its_own_order() -> None:
    order = Order(np.array([20, 30]), lanes=4, window=5, seed=1)
    alone = Mixture([order], [1], seed=9)
    shard, sample = order.samples(np.arange(100))
    for slot, spot in enumerate(alone.spots(np.arange(100))):
        shards, samples = order.window_samples(spot.epoch, spot.lane, spot.window)
        assert (shards[spot.offset], samples[spot.offset]) == (shard[slot], sample[slot])
    assert alone.epoch_slots == order.epoch_slots


def test_a_thousand_to_one_is_the_limit() -> None:
    orders = [Order(np.array([50]), lanes=3, window=5, seed=seed) for seed in range(2)]
    assert Mixture(orders, [999, 1], seed=0).counts(10_000) == [9990, 10]
    with pytest.raises(AssertionError):
        Mixture(orders, [1000, 1], seed=0)
