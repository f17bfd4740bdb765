"""Windows of raw samples: each run of neighbours is one ranged read, and the next window is prefetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from pipeline.config.data import CacheConfig
from pipeline.shards.cache import RangeCache
from pipeline.shards.index import DatasetIndex, ShardInfo, load_offsets
from pipeline.shards.store import read_range
from pipeline.shards.tar import TornTar, read_sample
from pipeline.shards.urls import is_local
from pipeline.stream.order import Ints, Order

READ_THREADS = 4  # concurrent ranged reads in one loader worker
READ_AHEAD = 8  # the next window is requested when 1/8 of the current one is left
AHEAD_BYTES = 512 << 20  # limit of prefetched windows in one loader worker
OFFSETS_KEPT = 32  # sidecars in memory; 80 KB each at 10,000 samples per shard

WindowId = tuple[int, int, int, int]  # data set number, epoch, lane, window number


class BadSample(Exception):
    """A sample that cannot be used; the message is the reason, and `key` identifies the sample once it is known."""

    key = ""


def ignore(size: int) -> None:
    """The default `progress`: does nothing."""


class RawSamples:
    """Raw samples in memory, in the order of the request."""

    def __init__(self, names: list[str], samples: Ints, slices: list[memoryview]) -> None:
        self._names, self._samples, self._slices = names, samples, slices

    def __len__(self) -> int:
        return len(self._slices)

    def where(self, number: int) -> tuple[str, int]:
        """Shard name and index in the shard."""
        return self._names[number], int(self._samples[number])

    def members(self, number: int) -> tuple[str, dict[str, memoryview]]:
        """Key and {extension: bytes} of a sample; raises BadSample if the tar is torn."""
        try:
            return read_sample(self._slices[number])
        except TornTar as error:
            raise BadSample(f"the tar {error}") from None


class SampleReader:
    """Reads samples of a data set by shard and index. Safe to share between threads.

    `progress` is called with the bytes of every read.
    """

    def __init__(
        self, index: DatasetIndex, cache: CacheConfig | None = None, progress: Callable[[int], None] = ignore
    ) -> None:
        self.index, self._progress = index, progress
        remote = cache is not None and not is_local(index.url)
        self._cache = RangeCache(cache.folder, int(cache.max_gigabytes * 1e9)) if cache and remote else None
        self._offsets = lru_cache(maxsize=OFFSETS_KEPT)(self._load_offsets)

    def read(self, shards: Ints, samples: Ints) -> RawSamples:
        """Samples by shard index and index in the shard, [num_samples] each.

        Neighbours in a shard share a read, whatever the requested order. Raises DataError if a shard cannot be read.
        """
        slices: list[memoryview] = [memoryview(b"")] * len(shards)
        by_place = np.lexsort((samples, shards))
        together = (np.diff(shards[by_place]) == 0) & (np.diff(samples[by_place]) == 1)
        for stretch in np.split(by_place, np.flatnonzero(~together) + 1):
            if len(stretch):
                self._read_stretch(int(shards[stretch[0]]), samples[stretch], stretch, slices)
        return RawSamples([self.index.names[shard] for shard in shards.tolist()], samples, slices)

    def mean_bytes(self) -> float:
        """Mean size of a sample, including headers."""
        return int(self.index.sizes.sum()) / max(self.index.num_samples, 1)

    def _read_stretch(self, shard: int, samples: Ints, into: Ints, slices: list[memoryview]) -> None:
        ends = self._offsets(shard)[samples[0] : samples[-1] + 2].astype(np.int64)
        data = memoryview(self._read_range(self.index.shards[shard], int(ends[0]), int(ends[-1])))
        bounds = (ends - ends[0]).tolist()
        for number, start, stop in zip(into.tolist(), bounds, bounds[1:], strict=False):
            slices[number] = data[start:stop]

    def _load_offsets(self, shard: int) -> np.ndarray:
        return load_offsets(self.index.shards[shard], self._cache)

    def _read_range(self, shard: ShardInfo, start: int, stop: int) -> bytes:
        if self._cache is None:
            data = read_range(shard.url, start, stop)
        else:
            data = self._cache.read(shard.url, shard.sha256, shard.bytes, start, stop)
        self._progress(len(data))
        return data


class WindowReader:
    """The current and next windows of some lanes; at most two per lane and data set are in memory.

    They are read by its own threads, so that one slow response does not delay the others. Prefetched windows take at
    most `ahead_bytes` in total, estimated by mean sample size; beyond that, windows are only read when needed.
    """

    def __init__(
        self, readers: Sequence[SampleReader], orders: Sequence[Order], ahead_bytes: int = AHEAD_BYTES
    ) -> None:
        self._readers, self._orders, self._free_bytes = readers, orders, ahead_bytes
        self._window_bytes = [
            int(reader.mean_bytes() * min(order.window, order.lane_samples))
            for reader, order in zip(readers, orders, strict=True)
        ]
        self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="window")
        self._current: dict[tuple[int, int], tuple[WindowId, RawSamples]] = {}  # by data set and lane
        self._coming: dict[WindowId, Future[RawSamples]] = {}

    def start(self, windows: Iterable[WindowId]) -> None:
        """Start reading windows that will be requested."""
        for window in windows:
            self._read_ahead(window)

    def get(self, window: WindowId, index: int, length: int) -> RawSamples:
        """A window of `length` samples, of which `index` is needed now. Raises DataError if it cannot be read."""
        held = self._current.get((window[0], window[2]))
        samples = held[1] if held is not None and held[0] == window else self._enter(window)
        if length - index <= max(length // READ_AHEAD, 1):
            source, epoch, lane, number = window
            self._read_ahead((source, *self._after(source, epoch, lane, number)))
        return samples

    def close(self) -> None:
        """Cancel reads that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _enter(self, window: WindowId) -> RawSamples:
        coming = self._coming.pop(window, None)
        if coming is not None:
            self._free_bytes += self._window_bytes[window[0]]
        samples = coming.result() if coming is not None else self._pool.submit(self._read, window).result()
        self._current[window[0], window[2]] = window, samples
        return samples

    def _after(self, source: int, epoch: int, lane: int, number: int) -> tuple[int, int, int]:
        epoch, number = self._orders[source].window_after(epoch, lane, number)
        return epoch, lane, number

    def _read_ahead(self, window: WindowId) -> None:
        size = self._window_bytes[window[0]]
        if window not in self._coming and size <= self._free_bytes:
            self._free_bytes -= size
            self._coming[window] = self._pool.submit(self._read, window)

    def _read(self, window: WindowId) -> RawSamples:
        return self._readers[window[0]].read(*self._orders[window[0]].window_samples(*window[1:]))
