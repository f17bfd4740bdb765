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
    key: str
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


class Doubles:
    """Samples that more than one shard has, by 24 bytes for each sample."""

    def __init__(self, index: DatasetIndex) -> None:
        self.index = index
        self._of_shards: list[tuple[int, Fingerprints]] = []

    def add(self, shard: int, found: Fingerprints) -> None:
        self._of_shards.append((shard, found))

    def found(self) -> Iterator[Double]:
        """Repetitions, each with the place of the first."""
        if not self._of_shards:
            return
        shards = np.concatenate([np.full(len(found.keys), shard) for shard, found in self._of_shards])
        samples = np.concatenate([np.arange(len(found.keys)) for _, found in self._of_shards])
        keys, images, labels = (np.concatenate(column) for column in zip(*(f for _, f in self._of_shards), strict=True))
        for first, again in repetitions(keys):
            if shards[first] != shards[again]:  # within a shard it was told before
                yield self._double(shards, samples, again, f"this key is in {self._name(shards[first])} too")
        empty = fingerprint(b"")
        for first, again in repetitions(images):
            labelled = labels[first] >= 0 and labels[again] >= 0
            if labelled and labels[first] != labels[again] and images[again] != empty:
                other = self._key(int(shards[first]), int(samples[first]))
                where = f"{self._name(shards[first])}/{other} (label {labels[first]})"
                yield self._double(shards, samples, again, f"label {labels[again]}, but its image is that of {where}")

    def _double(self, shards: np.ndarray, samples: np.ndarray, row: int, message: str) -> Double:
        shard, sample = int(shards[row]), int(samples[row])
        return Double(self.index.shards[shard].url, self._key(shard, sample), message)

    def _name(self, shard: int) -> str:
        return self.index.names[shard]

    def _key(self, shard: int, sample: int) -> str:
        info = self.index.shards[shard]
        start, stop = (int(byte) for byte in load_offsets(info)[sample : sample + 2])
        return read_sample(store.read_range(info.url, start, stop))[0]


def repetitions(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, later) positions of equal values, for each later one."""
    order = np.argsort(values, kind="stable")
    first = 0
    for place in range(1, len(order)):
        if values[order[place]] != values[order[first]]:
            first = place
        else:
            yield int(order[first]), int(order[place])
