"""Which data set fills a slot, when a stream mixes several by weight: a closed form, so one integer is the position.

A block is B slots, B the sum of the weights; a seeded pattern gives each data set exactly its weight of them. Blocks
lie end to end: any B slots from a multiple of B on hold every data set as often as its weight says. Every lcm(B, C)
slots the pattern moves on by one place, so that each lane, too, meets every data set by its weight within B of its
turns even where B and C share a factor; it never serves only some of them. How often a data set had its turn in a lane
is then whole periods times its weight, plus a table of B entries.

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
    """What stands in one slot: the data set, and where in its order."""

    source: int
    epoch: int
    lane: int
    window: int
    offset: int  # in the window
    length: int  # of the window


class Mixture:
    """The stream of one or several data sets over the same lanes; of one, it is that data set's order and nothing more.

    Args:
        orders: one per data set, all with the same number of lanes.
        weights: slots of each in a block, above 0; their sum is at most MAX_BLOCK.
        seed: key of the pattern, and of the draws per slot.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[int], seed: int) -> None:
        self.orders, self.seed, self.lanes = orders, seed, orders[0].lanes
        # Lowest terms: 2 to 4 is 1 to 2.
        self.weights = [weight // math.gcd(*weights) for weight in weights]
        self.block = sum(self.weights)
        assert self.block <= MAX_BLOCK, "the tables hold its square per data set"
        if len(orders) > 1:
            self._pattern = generator(seed, MIXTURE).permutation(np.repeat(np.arange(len(orders)), self.weights))
            self._tables()

    @property
    def epoch_slots(self) -> int:
        """Slots of an epoch: as many as its data sets have in one epoch of their own together."""
        return sum(order.epoch_slots for order in self.orders)

    def counts(self, slots: int) -> list[int]:
        """How many of the first `slots` slots each data set fills."""
        if len(self.orders) == 1:
            return [slots]
        blocks, rest = divmod(slots, self.block)
        last = self._source(np.arange(blocks * self.block, slots))
        partial = np.bincount(last, minlength=len(self.orders)) if rest else np.zeros(len(self.orders), np.int64)
        return (blocks * np.array(self.weights) + partial).tolist()

    def spots(self, slots: Ints) -> list[Spot]:
        """What stands in each slot, in the order given."""
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
        """The slot that takes the sample at another offset in a spot's window."""
        order = self.orders[spot.source]
        own_turn = spot.epoch * order.lane_samples + order.window_start(spot.lane, spot.window) + offset
        if len(self.orders) == 1:
            return own_turn * self.lanes + spot.lane
        periods, rest = divmod(own_turn, self.weights[spot.source])
        mine = self._prefix[spot.source, spot.lane % self.block]
        turn = periods * self.block + int(np.searchsorted(mine, rest, side="right")) - 1
        return turn * self.lanes + spot.lane

    def next_turns(self, slot: int, lanes: Ints) -> list[tuple[int, Place]]:
        """Per data set, where each lane stands the next time that data set has a turn at or after `slot`."""
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
        """Place in the pattern."""
        shared = math.gcd(self.block, self.lanes)
        moved = np.asarray(turn) // (self.block // shared) % shared  # lcm(B, C) slots are B / gcd(B, C) turns
        return (np.asarray(lane) + np.asarray(turn) * self.lanes + moved) % self.block

    def _source(self, slots: Ints) -> Ints:
        turn, lane = np.divmod(np.asarray(slots, dtype=np.int64), self.lanes)
        return self._pattern[self._phase(lane, turn)]

    def _own_turn(self, source: Ints, lane: Ints, turn: Ints) -> Ints:
        """How many turns of a lane before `turn` a data set had."""
        periods, rest = np.divmod(turn, self.block)
        return periods * np.array(self.weights)[source] + self._prefix[source, lane % self.block, rest]

    def _tables(self) -> None:
        """[S, B, B + 1] int16: turns that a data set had in a lane (by lane mod B) before a turn of the period."""
        lanes, turns = np.ogrid[: self.block, : self.block]
        sources = self._pattern[self._phase(lanes, turns)]
        self._prefix = np.zeros((len(self.orders), self.block, self.block + 1), np.int16)
        for source in range(len(self.orders)):
            np.cumsum(sources == source, axis=1, out=self._prefix[source, :, 1:])
