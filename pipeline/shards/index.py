"""The index of a folder of shards: each tar's number of samples, bytes, hash and target summaries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from pipeline.config.class_names import normalise_class_name
from pipeline.errors import DataError
from pipeline.shards import urls
from pipeline.shards.cache import RangeCache
from pipeline.shards.first_read import first_offsets
from pipeline.shards.members import DEFAULT_KEYS, Keys
from pipeline.shards.scan import ShardRecord, columns_of
from pipeline.shards.sidecar import SUFFIX, index_remedy, parse_sidecar, read_sidecar, sidecar_bytes
from pipeline.targets import Members, target_kind
from pipeline.targets.base import Summary, total

# What a shard's SHA-256 is of: the whole tar, its headers and labels, or its name, bytes and number of samples alone.
CONTENT, HEADERS, LISTING = "content", "headers", "listing"
HASH_DIGITS = 64  # of a SHA-256
DIGEST_CHARACTERS = 32  # MLflow takes up to 36

Columns = Mapping[str, list[int | None]]  # a value per shard


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar: its URL, its number of samples and bytes, and the SHA-256 of what the index says.

    `scanned`: its sidecar was written with the index; otherwise it is written when the shard is first read.
    """

    url: str
    samples: int
    bytes: int
    sha256: str
    scanned: bool = True

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The shards that a pattern selects in a folder, as columns."""

    url: str  # of the folder
    classes: Mapping[str, list[str]]  # by kind of target
    keys: Keys  # the image members that count for `without_image`
    members: Members  # of the kinds of targets in `columns`
    names: list[str]
    counts: np.ndarray  # int64 [num_shards], samples in each
    sizes: np.ndarray  # int64 [num_shards], bytes of each
    sha256: str  # HASH_DIGITS per shard, concatenated: a list would be slow to load and twice as large
    without_image: Mapping[int, int]  # number of samples, by position of the shard; 0 if absent
    columns: Mapping[str, Columns]  # summaries of each shard's samples, by kind of target
    hash_of: str = CONTENT  # CONTENT, HEADERS or LISTING; the last knows nothing of images and labels

    def __post_init__(self) -> None:
        classes = {kind: [normalise_class_name(name) for name in names] for kind, names in self.classes.items()}
        object.__setattr__(self, "classes", classes)

    @property
    def shards(self) -> Sequence[ShardInfo]:
        return _Shards(self)

    @property
    def num_samples(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def totals(self) -> dict[str, Summary]:
        """The summary of all samples, per kind of target."""
        return {kind: total(columns, columns_of(target_kind(kind))) for kind, columns in self.columns.items()}

    def summary(self, kind: str, i: int) -> Summary:
        """The summary of a shard's samples."""
        return {name: values[i] for name, values in self.columns[kind].items()}

    @cached_property
    def digest(self) -> str:
        """Identifies the content: a hexadecimal hash of the shards' names, hashes and sample counts, in this order."""
        counts = map(str, self.counts.tolist())
        rows = map(" ".join, zip(self.names, self._hashes(), counts, strict=True))
        return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()[:DIGEST_CHARACTERS]

    def records(self) -> list[ShardRecord]:
        counts, sizes = self.counts.tolist(), self.sizes.tolist()
        images = [self.without_image.get(i, 0) for i in range(len(self.names))]
        targets = [{kind: self.summary(kind, i) for kind in self.columns} for i in range(len(self.names))]
        columns = self.names, counts, sizes, self._hashes(), images, targets
        return [ShardRecord(*row) for row in zip(*columns, strict=True)]

    def shard_hash(self, i: int) -> str:
        """SHA-256 of a shard, hexadecimal."""
        return self.sha256[i * HASH_DIGITS : (i + 1) * HASH_DIGITS]

    def _hashes(self) -> list[str]:
        return [self.shard_hash(i) for i in range(len(self.names))]

    def select(self, names: Sequence[str]) -> DatasetIndex:
        """The index of only these shards, in this order."""
        if names == self.names:
            return self
        rows = dict(zip(self.names, self.records(), strict=True))
        chosen = [rows[name] for name in names]
        return make_index(self.url, chosen, self.classes, self.keys, self.members, hash_of=self.hash_of)


class _Shards(Sequence[ShardInfo]):
    """The shards of an index, created on access, because a list of them would take more memory than the index."""

    def __init__(self, index: DatasetIndex):
        self.of = index

    def __len__(self) -> int:
        return len(self.of.names)

    @overload
    def __getitem__(self, i: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, i: slice) -> list[ShardInfo]: ...
    def __getitem__(self, i: int | slice) -> ShardInfo | list[ShardInfo]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        index = self.of
        url = urls.join(index.url, index.names[i])
        counted = int(index.counts[i]), int(index.sizes[i])
        return ShardInfo(url, *counted, index.shard_hash(i), index.hash_of != LISTING)


def make_index(
    url: str,
    records: Sequence[ShardRecord],
    classes: Mapping[str, Sequence[str]] | None = None,
    keys: Keys = DEFAULT_KEYS,
    members: Members | None = None,
    *,
    hash_of: str = CONTENT,
) -> DatasetIndex:
    """Makes an index from its rows, which summarise the kinds of targets in `members`, unless by LISTING."""
    return DatasetIndex(
        url,
        {kind: list(names) for kind, names in (classes or {}).items()},
        keys,
        members or {},
        names=[record.name for record in records],
        counts=np.array([record.samples for record in records], np.int64),
        sizes=np.array([record.bytes for record in records], np.int64),
        sha256="".join(record.sha256 for record in records),
        without_image={i: record.without_image for i, record in enumerate(records) if record.without_image},
        columns={
            kind: {name: [record.targets[kind][name] for record in records] for name in columns_of(target_kind(kind))}
            for kind in (members or {} if hash_of != LISTING else {})
        },
        hash_of=hash_of,
    )


def listing_hash(name: str, samples: int, size: int) -> str:
    """Stands for the hash of a shard that has not been read."""
    return hashlib.sha256(f"{name}\0{samples}\0{size}".encode("utf-8", "surrogateescape")).hexdigest()


def load_offsets(shard: ShardInfo, cache: RangeCache | None = None) -> np.ndarray:
    """uint64 [samples + 1]: sample i is bytes offsets[i] to offsets[i + 1] of the tar, whole members with headers.

    A shard that was indexed by its count is scanned the first time. Raises DataError if the sidecar is missing or
    damaged, or belongs to another tar, or if the shard is not what its count says.
    """
    try:
        return _indexed_offsets(shard, cache)
    except DataError:
        if shard.scanned:
            raise
    return first_offsets(shard.url, shard.samples, shard.bytes, shard.sha256)


def _indexed_offsets(shard: ShardInfo, cache: RangeCache | None) -> np.ndarray:
    if cache is None:
        sidecar = read_sidecar(shard.url)
    else:
        size = sidecar_bytes(shard.samples)
        data = cache.read(shard.url + SUFFIX, shard.sha256, size, 0, size)
        sidecar = parse_sidecar(data, shard.url)
    if (sidecar.tar_bytes, sidecar.samples, sidecar.sha256) != (shard.bytes, shard.samples, shard.sha256):
        raise DataError(
            f"{shard.url + SUFFIX}: belongs to another tar than the one in the index; {index_remedy(shard.url)}"
        )
    return sidecar.offsets
