"""The sample in each slot of the training stream: pure arithmetic, no state, no I/O.

An epoch concatenates its permuted shards; the ring of N samples is rotated by a random offset, so that the N mod C
omitted samples differ between epochs even with few shards, and split into C equal lanes of L = N // C samples. Inside a
lane, samples are permuted within windows. Slot s belongs to lane s mod C, so the lanes take turns. All draws are keyed
only by the seed and the place: ranks, loader workers and restarts do not affect the contents of a slot.

Legend: C lanes, L samples per lane and epoch, N samples, W ranks, K loader workers of a rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pipeline.errors import DataError
from pipeline.stream.draws import RING, SHARDS, WINDOW, generator

Ints = np.ndarray  # int64, any shape
EPOCHS_KEPT = 2  # in memory: two are in use at the end of an epoch; others are drawn again
IntsLike = np.ndarray | int


class Place(NamedTuple):
    """Positions of samples: the window and the offset in it; int64 arrays of equal shape."""

    epoch: Ints
    lane: Ints
    window: Ints
    offset: Ints  # in the window
    length: Ints  # of the window


class Epoch(NamedTuple):
    """One epoch's ring: shards in their order, the ring position at which each ends, and the rotation."""

    shards: Ints
    ends: Ints
    offset: int


class Order:
    """The order of a data set's samples under one seed.

    Args:
        counts: samples per shard, int64 [num_shards].
        lanes: C; constant over a run.
        window: samples shuffled together within a lane.
        seed: key of every draw.
        excluded: shard index -> sample indices to omit (in any order, duplicates allowed).
        name: the data set's name, for errors.

    Raises:
        DataError: there are fewer samples than lanes.
    """

    def __init__(
        self,
        counts: Ints,
        *,
        lanes: int,
        window: int,
        seed: int,
        excluded: Mapping[int, Ints] | None = None,
        name: str = "the data set",
    ) -> None:
        self.lanes, self.window, self.seed = lanes, window, seed
        self._excluded = {shard: np.unique(samples) for shard, samples in (excluded or {}).items() if len(samples)}
        self._counts = np.array(counts, dtype=np.int64)
        for shard, samples in self._excluded.items():
            self._counts[shard] -= len(samples)
        self.num_samples = int(self._counts.sum())
        if self.num_samples < lanes:
            raise DataError(
                f"data.lanes: {lanes} lanes need at least as many samples, and {name} has {self.num_samples}; "
                f"set data.lanes to at most {max(self.num_samples, 1)} or use more data"
            )
        self.lane_samples = self.num_samples // lanes
        self.epoch_slots = self.lane_samples * lanes
        self._epochs: tuple[tuple[int, Epoch], ...] = ()  # immutable, only replaced, as reading threads share it

    @property
    def left_out(self) -> int:
        """The number of samples that an epoch omits, N mod C; they differ each epoch."""
        return self.num_samples - self.epoch_slots

    def place(self, lane: IntsLike, turn: IntsLike) -> Place:
        """The place of a lane's sample at its n-th turn, counted from 0 over all epochs."""
        epoch, position = np.divmod(np.asarray(turn, dtype=np.int64), self.lane_samples)
        shift = self._shift(lane)
        window = (position + shift) // self.window
        start = np.maximum(window * self.window - shift, 0)
        stop = np.minimum((window + 1) * self.window - shift, self.lane_samples)
        return Place(epoch, np.asarray(lane, dtype=np.int64), window, position - start, stop - start)

    def window_after(self, epoch: int, lane: int, window: int) -> tuple[int, int]:
        """Epoch and number of a lane's next window."""
        last = (self.lane_samples - 1 + int(self._shift(lane))) // self.window
        return (epoch + 1, 0) if window == last else (epoch, window + 1)

    def window_start(self, lane: int, window: int) -> int:
        """In-lane position of a window's first sample."""
        return max(window * self.window - int(self._shift(lane)), 0)

    def window_samples(self, epoch: int, lane: int, window: int) -> tuple[Ints, Ints]:
        """Shard and sample indices, int64 [window length] each, of a window in slot order."""
        start = self.window_start(lane, window)
        stop = min((window + 1) * self.window - int(self._shift(lane)), self.lane_samples)
        permutation = generator(self.seed, WINDOW, epoch, lane, window).permutation(stop - start)
        return self._ring(epoch, lane * self.lane_samples + start + permutation)

    def samples(self, slots: Ints) -> tuple[Ints, Ints]:
        """Shard and sample indices, int64 [num_slots] each, of any slots, in any order, without a mixture."""
        turn, lane = np.divmod(np.asarray(slots, dtype=np.int64), self.lanes)
        place = self.place(lane, turn)
        shard, sample = np.empty_like(lane), np.empty_like(lane)
        keys = np.stack([place.epoch, place.lane, place.window], axis=-1)
        unique, group = np.unique(keys, axis=0, return_inverse=True)
        for number, key in enumerate(unique.tolist()):
            members = np.flatnonzero(group == number)
            shards, samples = self.window_samples(*key)
            shard[members], sample[members] = shards[place.offset[members]], samples[place.offset[members]]
        return shard, sample

    def _shift(self, lane: IntsLike) -> Ints:
        """How far a lane's windows start before its first sample.

        It differs by lane, so that lanes need their next windows at different steps.
        """
        lane = np.asarray(lane, dtype=np.int64)
        return lane * self.window // self.lanes if self.lane_samples > self.window else np.zeros_like(lane)

    def _epoch(self, epoch: int) -> Epoch:
        for number, known in self._epochs:
            if number == epoch:
                return known
        shards = generator(self.seed, SHARDS, epoch).permutation(len(self._counts))
        offset = int(generator(self.seed, RING, epoch).integers(self.num_samples))
        found = Epoch(shards, np.cumsum(self._counts[shards]), offset)
        self._epochs = (*self._epochs, (epoch, found))[-EPOCHS_KEPT:]
        return found

    def _ring(self, epoch: int, positions: Ints) -> tuple[Ints, Ints]:
        """Shard and sample indices at positions of an epoch's ring."""
        shards, ends, offset = self._epoch(epoch)
        ring = (positions + offset) % self.num_samples
        nth = np.searchsorted(ends, ring, side="right")
        shard = shards[nth]
        kept = ring - (ends[nth] - self._counts[shard])
        return shard, self._skip_excluded(shard, kept)

    def _skip_excluded(self, shard: Ints, kept: Ints) -> Ints:
        """Map indices among the kept samples of each shard to sample indices."""
        if not self._excluded:
            return kept
        sample = kept.copy()
        for number in np.unique(shard).tolist():
            excluded = self._excluded.get(number)
            if excluded is not None:
                # The i-th excluded sample comes after excluded[i] - i kept ones.
                mine = shard == number
                sample[mine] += np.searchsorted(excluded - np.arange(len(excluded)), kept[mine], side="right")
        return sample


def check_lanes(lanes: int, world_size: int) -> None:
    """Raise DataError if a rank would have no lane."""
    if world_size > lanes:
        raise DataError(
            f"data.lanes: {lanes} lanes cannot be split among {world_size} ranks; "
            f"set data.lanes to at least {world_size} in a new run, or use at most {lanes} workers"
        )


def is_share(lane: Ints, *, rank: int, world_size: int, worker: int = 0, workers: int = 1) -> np.ndarray:
    """Whether lanes belong to a loader worker of a rank: rank l mod W, worker (l // W) mod K; bool, lane's shape."""
    lane = np.asarray(lane)
    return (lane % world_size == rank) & (lane // world_size % workers == worker)


def share_of_lanes(lanes: int, *, rank: int, world_size: int, worker: int = 0, workers: int = 1) -> Ints:
    """Lanes of a loader worker of a rank, ascending."""
    every = np.arange(lanes)
    return every[is_share(every, rank=rank, world_size=world_size, worker=worker, workers=workers)]


def share_of_step(
    first_slot: int,
    global_batch_size: int,
    lanes: int,
    *,
    rank: int,
    world_size: int,
    worker: int = 0,
    workers: int = 1,
) -> Ints:
    """Slots that a loader worker of a rank fills in the step that starts at `first_slot`, ascending."""
    slots = np.arange(first_slot, first_slot + global_batch_size)
    return slots[is_share(slots % lanes, rank=rank, world_size=world_size, worker=worker, workers=workers)]


def step_shares(lanes: int, global_batch_size: int, world_size: int) -> tuple[int, int]:
    """Minimum and maximum samples of any rank in any step: slot s is in lane s mod C, lane l on rank l mod W."""
    least, most = global_batch_size, 0
    for step in range(lanes // math.gcd(lanes, global_batch_size)):  # afterwards the lanes' turns repeat
        slots = np.arange(step * global_batch_size, (step + 1) * global_batch_size)
        shares = np.bincount(slots % lanes % world_size, minlength=world_size)
        least, most = min(least, int(shares.min())), max(most, int(shares.max()))
    return least, most
