"""Random draws of the stream, keyed by seed, purpose and place, and independent of the process and time of drawing."""

from __future__ import annotations

from typing import Any

import numpy as np

# Part of every key, so that draws for different purposes never share a stream.
SHARDS, RING, WINDOW, AUGMENT, MIX, RESOLUTION, MIXTURE, PICK = range(8)


def generator(seed: int, purpose: int, *place: int) -> np.random.Generator:
    """A generator keyed by seed, purpose and place."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, purpose, *place))))


class SlotDraws:
    """Generators keyed by (seed, purpose, slot, view), at a cost of a microsecond each.

    Philox (Salmon et al. 2011) is counter-based: seed and purpose form its key, and slot and view the upper half of its
    counter, so one generator is reset to the start of a view's own 2^128 blocks instead of creating a new one.
    """

    def __init__(self, seed: int, purpose: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._start: Any = self._bits.state  # before the first draw
        self._counter = self._start["state"]["counter"]

    def at(self, slot: int, view: int = 0) -> np.random.Generator:
        """The generator at the start of a view's draws; valid until the next call, which resets it."""
        self._counter[2], self._counter[3] = slot, view
        self._bits.state = self._start
        return self._generator
