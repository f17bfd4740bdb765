"""Samples that a data set holds twice, found by 24 bytes for each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.shards import store
from pipeline.shards.index import DatasetIndex, load_offsets
from pipeline.shards.tar import read_sample

HASH = np.dtype(np.uint64)


class Double(NamedTuple):
    """A repetition: its shard, its key, and what it repeats."""

    shard: str
    key: str | None  # None for a whole shard
    message: str


class Fingerprints(NamedTuple):
    """What a shard's samples are known by: 64-bit hashes of key and image, and the label; -1 for none."""

    keys: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, rows: list[tuple[int, int, int]]) -> Fingerprints:
        keys, images, labels = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(np.array(keys, HASH), np.array(images, HASH), np.array(labels, np.int64))


def fingerprint(data: bytes | memoryview) -> int:
    """64 bits that equal bytes share."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


EMPTY = fingerprint(b"")  # of what a sample lacks


class Doubles:
    """Samples that a data set holds more than once; keeps 24 bytes for each sample."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._of_shards: list[tuple[int, Fingerprints]] = []

    def add(self, shard: int, found: Fingerprints) -> None:
        self._of_shards.append((shard, found))

    def found(self) -> Iterator[Double]:
        """Repetitions, each with the place of the first."""
        shards, samples, (keys, images, labels) = self.columns()
        for first, again in repetitions(keys):
            # Within a shard it was reported before; a torn sample has no key.
            if shards[first] != shards[again] and keys[again] != EMPTY:
                yield self.double(shards, samples, again, f"this key is in {self._name(shards[first])} too")
        for first, again in repetitions(images):
            labelled = labels[first] >= 0 and labels[again] >= 0
            if labelled and labels[first] != labels[again] and images[again] != EMPTY:
                where = f"{self.place(shards, samples, first)} (label {labels[first]})"
                yield self.double(shards, samples, again, f"label {labels[again]}, but its image is that of {where}")

    def columns(self) -> tuple[np.ndarray, np.ndarray, Fingerprints]:
        """Of all samples: number of the shard, number in the shard, and what it is known by."""
        if not self._of_shards:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), Fingerprints.of([])
        shards = np.concatenate([np.full(len(found.keys), shard) for shard, found in self._of_shards])
        samples = np.concatenate([np.arange(len(found.keys)) for _, found in self._of_shards])
        columns = zip(*(found for _, found in self._of_shards), strict=True)
        return shards, samples, Fingerprints(*(np.concatenate(column) for column in columns))

    def place(self, shards: np.ndarray, samples: np.ndarray, row: int) -> str:
        """Shard and key of a sample."""
        return f"{self._name(int(shards[row]))}/{self._key(int(shards[row]), int(samples[row]))}"

    def double(self, shards: np.ndarray, samples: np.ndarray, row: int, message: str) -> Double:
        """A sample, and what it repeats."""
        shard, sample = int(shards[row]), int(samples[row])
        return Double(self.index.shards[shard].url, self._key(shard, sample), message)

    def _name(self, shard: int) -> str:
        return self.index.names[shard]

    def _key(self, shard: int, sample: int) -> str:
        info = self.index.shards[shard]
        start, stop = (int(byte) for byte in load_offsets(info)[sample : sample + 2])
        return read_sample(store.read_range(info.url, start, stop))[0]


def overlap(first: Doubles, second: Doubles, name: str) -> Iterator[Double]:
    """What of the second data set is in the first, called `name`: whole shards, and images in other shards."""
    shared = {shard.url for shard in first.index.shards} & {shard.url for shard in second.index.shards}
    for url in sorted(shared):
        yield Double(url, None, f"this shard is in {name} too")
    theirs, their_samples, (_, their_images, _) = first.columns()
    ours, our_samples, (_, our_images, _) = second.columns()
    if not len(their_images):
        return
    order = np.argsort(their_images, kind="stable")
    spots = np.minimum(np.searchsorted(their_images, our_images, sorter=order), len(order) - 1)
    for row in np.flatnonzero((their_images[order[spots]] == our_images) & (our_images != EMPTY)).tolist():
        if second.index.shards[int(ours[row])].url not in shared:
            where = first.place(theirs, their_samples, int(order[spots[row]]))
            yield second.double(ours, our_samples, row, f"its image is in {name} too: {where}")


def repetitions(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, later) positions of equal values, for each later one."""
    order = np.argsort(values, kind="stable")
    first = 0
    for place in range(1, len(order)):
        if values[order[place]] != values[order[first]]:
            first = place
        else:
            yield int(order[first]), int(order[place])
