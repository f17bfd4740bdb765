"""Finds duplicate images in data sets, with 16 bytes per sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.shards import store
from pipeline.shards.index import DatasetIndex, load_offsets
from pipeline.shards.tar import read_sample

HASH = np.dtype(np.uint64)


class Duplicate(NamedTuple):
    """A duplicate: its shard, its key, and what it duplicates."""

    shard: str
    key: str | None  # None for a whole shard
    message: str


class Fingerprints(NamedTuple):
    """A shard's samples as 64-bit hashes of their images, and their labels; -1 for no label."""

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, rows: list[tuple[int, int]]) -> Fingerprints:
        images, labels = zip(*rows, strict=True) if rows else ((), ())
        return cls(np.array(images, HASH), np.array(labels, np.int64))


def fingerprint(data: bytes | memoryview) -> int:
    """A 64-bit hash of the bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


EMPTY = fingerprint(b"")  # of a sample without image


class DuplicateFinder:
    """Finds images that a data set contains more than once; keeps 16 bytes per sample."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._of_shards: list[tuple[int, Fingerprints]] = []

    def add(self, shard: int, found: Fingerprints) -> None:
        self._of_shards.append((shard, found))

    def found(self) -> Iterator[Duplicate]:
        """Yields duplicates, each with the location of the first occurrence; those with another label come first."""
        shards, samples, (images, labels) = self.columns()
        firsts, agains = repetitions(images)
        differ = (labels[firsts] != labels[agains]) & (labels[firsts] >= 0) & (labels[agains] >= 0)
        for i in np.lexsort((agains, ~differ)):
            first, again = int(firsts[i]), int(agains[i])
            if images[again] == EMPTY:
                continue
            message = f"its image duplicates {self.place(shards, samples, first)}"
            if differ[i]:
                message = f"label {labels[again]}, but {message} (label {labels[first]})"
            yield self.duplicate(shards, samples, again, message)

    def columns(self) -> tuple[np.ndarray, np.ndarray, Fingerprints]:
        """For all samples: number of the shard, number within the shard, and fingerprints."""
        if not self._of_shards:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), Fingerprints.of([])
        shards = np.concatenate([np.full(len(found.images), shard) for shard, found in self._of_shards])
        samples = np.concatenate([np.arange(len(found.images)) for _, found in self._of_shards])
        columns = zip(*(found for _, found in self._of_shards), strict=True)
        return shards, samples, Fingerprints(*(np.concatenate(column) for column in columns))

    def place(self, shards: np.ndarray, samples: np.ndarray, row: int) -> str:
        """Shard and key of a sample."""
        return f"{self._name(int(shards[row]))}/{self._key(int(shards[row]), int(samples[row]))}"

    def duplicate(self, shards: np.ndarray, samples: np.ndarray, row: int, message: str) -> Duplicate:
        """A sample, and what it duplicates."""
        shard, sample = int(shards[row]), int(samples[row])
        return Duplicate(self.index.shards[shard].url, self._key(shard, sample), message)

    def _name(self, shard: int) -> str:
        return self.index.names[shard]

    def _key(self, shard: int, sample: int) -> str:
        info = self.index.shards[shard]
        start, stop = (int(byte) for byte in load_offsets(info)[sample : sample + 2])
        return read_sample(store.read_range(info.url, start, stop))[0]


def overlap(first: DuplicateFinder, second: DuplicateFinder, name: str) -> Iterator[Duplicate]:
    """Yields what the second data set shares with the first, called `name`: whole shards, then images in others."""
    shared = {shard.url for shard in first.index.shards} & {shard.url for shard in second.index.shards}
    for url in sorted(shared):
        yield Duplicate(url, None, f"this shard is also in {name}")
    theirs, their_samples, (their_images, _) = first.columns()
    ours, our_samples, (our_images, _) = second.columns()
    if not len(their_images):
        return
    order = np.argsort(their_images, kind="stable")
    spots = np.minimum(np.searchsorted(their_images, our_images, sorter=order), len(order) - 1)
    for row in np.flatnonzero((their_images[order[spots]] == our_images) & (our_images != EMPTY)).tolist():
        if second.index.shards[int(ours[row])].url not in shared:
            where = first.place(theirs, their_samples, int(order[spots[row]]))
            yield second.duplicate(ours, our_samples, row, f"its image is also in {name}: {where}")


def repetitions(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of repeated values: for each repetition, that of the first occurrence and its own."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    begins = np.diff(repeats, prepend=-1) > 1  # a run of equal values
    heads = np.maximum.accumulate(np.where(begins, repeats - 1, 0))
    return order[heads], order[repeats]
