"""The data set of each slot in a weighted mixture, in closed form, so that one integer is the position of the stream.

A block has B slots, where B is the sum of the weights; a seeded pattern assigns each data set exactly its weight in
slots. Blocks lie end to end: any B slots from a multiple of B contain every data set as often as its weight. Every
lcm(B, C) slots the pattern shifts by one place, so that each lane also contains every data set by its weight within B
of its turns, even if B and C share a factor; no lane serves only some of them. The number of turns that a data set had
in a lane is thus the number of whole periods times its weight, plus an entry of a table with B entries.

Legend: S data sets, B slots of a block, C lanes; a lane's turn is slot // C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.config.data import MAX_BLOCK
from pipeline.stream.draws import MIXTURE, generator
from pipeline.stream.order import Ints, IntsLike, Order, Place


class Spot(NamedTuple):
    """The contents of a slot: the data set, and the position in its order."""

    source: int
    epoch: int
    lane: int
    window: int
    offset: int  # in the window
    length: int  # of the window


class Mixture:
    """The stream of one or several data sets over the same lanes; with one data set, it is just that data set's order.

    Args:
        orders: one per data set, all with the same number of lanes.
        weights: slots of each data set in a block, above 0; their sum is at most MAX_BLOCK.
        seed: key of the pattern and of the draws per slot.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[int], seed: int) -> None:
        self.orders, self.seed, self.lanes = orders, seed, orders[0].lanes
        # In lowest terms: 2 to 4 becomes 1 to 2.
        self.weights = [weight // math.gcd(*weights) for weight in weights]
        self.block = sum(self.weights)
        assert self.block <= MAX_BLOCK, "the tables hold its square per data set"
        if len(orders) > 1:
            self._pattern = generator(seed, MIXTURE).permutation(np.repeat(np.arange(len(orders)), self.weights))
            self._tables()

    @property
    def epoch_slots(self) -> int:
        """Slots of an epoch: the sum over the data sets of the slots of their own epochs."""
        return sum(order.epoch_slots for order in self.orders)

    def counts(self, slots: int) -> list[int]:
        """The number of the first `slots` slots that each data set fills."""
        if len(self.orders) == 1:
            return [slots]
        blocks, rest = divmod(slots, self.block)
        last = self._source(np.arange(blocks * self.block, slots))
        partial = np.bincount(last, minlength=len(self.orders)) if rest else np.zeros(len(self.orders), np.int64)
        return (blocks * np.array(self.weights) + partial).tolist()

    def spots(self, slots: Ints) -> list[Spot]:
        """The contents of each slot, in the given order."""
        turn, lane = np.divmod(np.asarray(slots, dtype=np.int64), self.lanes)
        if len(self.orders) == 1:
            return self._spots_of(0, self.orders[0].place(lane, turn))
        sources = self._source(slots)
        own_turn = self._own_turn(sources, lane, turn)
        spots: dict[int, Spot] = {}
        for source in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == source)
            found = self._spots_of(source, self.orders[source].place(lane[rows], own_turn[rows]))
            spots.update(zip(rows.tolist(), found, strict=True))
        return [spots[row] for row in range(len(turn))]

    def slot_of(self, spot: Spot, offset: int) -> int:
        """The slot of the sample at another offset in a spot's window."""
        order = self.orders[spot.source]
        own_turn = spot.epoch * order.lane_samples + order.window_start(spot.lane, spot.window) + offset
        if len(self.orders) == 1:
            return own_turn * self.lanes + spot.lane
        periods, rest = divmod(own_turn, self.weights[spot.source])
        mine = self._prefix[spot.source, spot.lane % self.block]
        turn = periods * self.block + int(np.searchsorted(mine, rest, side="right")) - 1
        return turn * self.lanes + spot.lane

    def next_turns(self, slot: int, lanes: Ints) -> list[tuple[int, Place]]:
        """Per data set, the place of each lane at that data set's next turn at or after `slot`."""
        turn = -((lanes - slot) // self.lanes)  # the first turn of each lane whose slot is at or after `slot`
        if len(self.orders) == 1:
            return [(0, self.orders[0].place(lanes, turn))]
        return [
            (source, order.place(lanes, self._own_turn(np.full_like(lanes, source), lanes, turn)))
            for source, order in enumerate(self.orders)
        ]

    @staticmethod
    def _spots_of(source: int, place: Place) -> list[Spot]:
        return [Spot(source, *numbers) for numbers in zip(*(column.tolist() for column in place), strict=True)]

    def _phase(self, lane: IntsLike, turn: IntsLike) -> Ints:
        """Position in the pattern."""
        shared = math.gcd(self.block, self.lanes)
        moved = np.asarray(turn) // (self.block // shared) % shared  # lcm(B, C) slots are B / gcd(B, C) turns
        return (np.asarray(lane) + np.asarray(turn) * self.lanes + moved) % self.block

    def _source(self, slots: Ints) -> Ints:
        turn, lane = np.divmod(np.asarray(slots, dtype=np.int64), self.lanes)
        return self._pattern[self._phase(lane, turn)]

    def _own_turn(self, source: Ints, lane: Ints, turn: Ints) -> Ints:
        """The number of turns of a lane before `turn` that belonged to a data set."""
        periods, rest = np.divmod(turn, self.block)
        return periods * np.array(self.weights)[source] + self._prefix[source, lane % self.block, rest]

    def _tables(self) -> None:
        """Build [S, B, B + 1] int16: turns of a data set in a lane (by lane mod B) before each turn of the period."""
        lanes, turns = np.ogrid[: self.block, : self.block]
        sources = self._pattern[self._phase(lanes, turns)]
        self._prefix = np.zeros((len(self.orders), self.block, self.block + 1), np.int16)
        for source in range(len(self.orders)):
            np.cumsum(sources == source, axis=1, out=self._prefix[source, :, 1:])
