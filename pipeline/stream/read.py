"""Windows of raw samples: each stretch of neighbours in one ranged read, the next window while this one is used."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from pipeline.shards.index import DatasetIndex, load_offsets
from pipeline.shards.store import read_range
from pipeline.shards.tar import TornTar, read_sample
from pipeline.stream.decode import BadSample
from pipeline.stream.order import Order

Ints = np.ndarray  # int64
READ_THREADS = 4  # ranged reads under way at once in one loader worker
READ_AHEAD = 8  # the next window is asked for when 1/8 of the current one is left
OFFSETS_KEPT = 256  # sidecars in memory; at 10,000 samples a shard, 80 KB each

WindowId = tuple[int, int, int]  # epoch, lane, number of the window


class Samples:
    """Raw samples in memory, in the order they were asked for."""

    def __init__(self, names: list[str], samples: Ints, slices: list[memoryview]) -> None:
        self._names, self._samples, self._slices = names, samples, slices

    def __len__(self) -> int:
        return len(self._slices)

    def where(self, number: int) -> tuple[str, int]:
        """Shard name and index in the shard."""
        return self._names[number], int(self._samples[number])

    def members(self, number: int) -> tuple[str, dict[str, bytes]]:
        """Key and {extension: bytes} of a sample; raises BadSample where the tar is torn."""
        try:
            return read_sample(bytes(self._slices[number]))
        except TornTar as error:
            raise BadSample(f"the tar {error}") from None


class Reader:
    """Reads samples of a data set by shard and index. Safe to share between threads."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._offsets = lru_cache(maxsize=OFFSETS_KEPT)(self._load_offsets)

    def read(self, shards: Ints, samples: Ints) -> Samples:
        """Samples by shard index and index in the shard, [num_samples] each.

        Neighbours in a shard share a read, whatever the order asked for. Raises DataError if a shard cannot be read.
        """
        slices: list[memoryview] = [memoryview(b"")] * len(shards)
        by_place = np.lexsort((samples, shards))
        together = (np.diff(shards[by_place]) == 0) & (np.diff(samples[by_place]) == 1)
        for stretch in np.split(by_place, np.flatnonzero(~together) + 1):
            if len(stretch):
                self._read_stretch(int(shards[stretch[0]]), samples[stretch], stretch, slices)
        return Samples([self.index.names[shard] for shard in shards.tolist()], samples, slices)

    def _read_stretch(self, shard: int, samples: Ints, into: Ints, slices: list[memoryview]) -> None:
        ends = self._offsets(shard)[samples[0] : samples[-1] + 2].astype(np.int64)
        data = memoryview(read_range(self.index.shards[shard].url, int(ends[0]), int(ends[-1])))
        bounds = (ends - ends[0]).tolist()
        for number, start, stop in zip(into.tolist(), bounds, bounds[1:], strict=False):
            slices[number] = data[start:stop]

    def _load_offsets(self, shard: int) -> np.ndarray:
        return load_offsets(self.index.shards[shard])


class WindowReader:
    """The windows that some lanes stand in; at most two per lane are held.

    Lanes are read in turn by threads of its own, so one slow answer delays none of the others.
    """

    def __init__(self, reader: Reader, order: Order) -> None:
        self._reader, self._order = reader, order
        self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="window")
        self._windows: dict[int, dict[WindowId, Future[Samples]]] = {}  # by lane

    def start(self, windows: Iterable[WindowId]) -> None:
        """Begin to read windows that will be asked for."""
        for window in windows:
            self._request(window)

    def get(self, epoch: int, lane: int, position: int) -> tuple[Samples, int]:
        """The window that holds a lane's in-lane position, and the sample's place in it. Raises DataError."""
        number = int(self._order.window_of(lane, position))
        start, stop = self._order.window_bounds(lane, number)
        current = (epoch, lane, number)
        samples = self._request(current).result()
        if stop - position <= max(self._order.window // READ_AHEAD, 1):
            self._request((epoch + 1, lane, 0) if stop == self._order.lane_samples else (epoch, lane, number + 1))
        held = self._windows[lane]
        for past in [window for window in held if window < current]:
            del held[past]
        return samples, position - start

    def close(self) -> None:
        """Forget reads that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, window: WindowId) -> Future[Samples]:
        lane = self._windows.setdefault(window[1], {})
        if window not in lane:
            lane[window] = self._pool.submit(self._read, window)
        return lane[window]

    def _read(self, window: WindowId) -> Samples:
        return self._reader.read(*self._order.window_samples(*window))
