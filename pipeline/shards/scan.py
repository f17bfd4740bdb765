"""Reading one tar from end to end: its samples, labels and hash in a single pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import numpy as np

from pipeline.shards import store
from pipeline.shards.remote import RemoteFile
from pipeline.shards.sidecar import Sidecar
from pipeline.shards.tar import Member, TarStream, TornTar, members, parse_label, split_name

HEADER_PIECE = 32 << 10  # bytes of one request where only headers and labels are wanted
LONGEST_LABEL = 64  # bytes; whatever is longer is no class number


@dataclass
class SampleScan:
    """One sample as it lies in the tar. `label` is None if its member is missing or not a number."""

    key: str
    start: int
    extensions: list[str] = field(default_factory=list)
    label: int | None = None


@dataclass(frozen=True)
class ShardRecord:
    """A shard's row in the index; the label bounds are None if no sample has a class number."""

    name: str
    samples: int
    bytes: int
    sha256: str
    label_min: int | None
    label_max: int | None

    @classmethod
    def from_labels(cls, name: str, sidecar: Sidecar, labels: list[int]) -> ShardRecord:
        bounds = (min(labels), max(labels)) if labels else (None, None)
        return cls(name, sidecar.samples, sidecar.tar_bytes, sidecar.sha256, *bounds)


@dataclass(frozen=True)
class ShardScan:
    sidecar: Sidecar
    samples: list[SampleScan]

    def record(self, name: str) -> ShardRecord:
        labels = [sample.label for sample in self.samples if sample.label is not None]
        return ShardRecord.from_labels(name, self.sidecar, labels)


def scan_shard(url: str, label_key: str = "cls", *, headers_only: bool = False) -> ShardScan:
    """Read a tar once, forwards. Raises TornTar (no file named) for a damaged one, DataError for an unreadable one.

    With `headers_only`, headers and labels alone are read, by ranges where the tar is remote; the hash is theirs.
    """
    digest = hashlib.sha256()
    with open_skipping(url) if headers_only else store.open_url(url) as file:
        stream = SkippingStream(file, digest.update, url) if headers_only else TarStream(file, digest.update)
        samples: list[SampleScan] = []
        end = 0
        for member in members(stream):
            sample = _place(samples, member)
            if sample is None:
                continue
            end = member.end
            if sample.extensions[-1] == label_key and member.size <= LONGEST_LABEL:
                sample.label = parse_label(stream.read(member.size))
        stream.drain()
    starts = [sample.start for sample in samples]
    offsets = np.array([*starts, end if samples else 0], np.uint64)
    return ShardScan(Sidecar(stream.position, digest.hexdigest(), offsets), samples)


class SkippingStream(TarStream):
    """Passes over what nobody asks to read."""

    def __init__(self, file: BinaryIO, observe: Callable[[bytes], object], url: str) -> None:
        super().__init__(file, observe)
        self.url = url

    def advance(self, position: int) -> None:
        if position > self.position:
            self.file.seek(position - self.position, os.SEEK_CUR)
            self.position = position

    def drain(self) -> None:
        """To the end of the file. TornTar if it ends before the last member."""
        size = store.file_size(self.url)
        if size < self.position:
            raise TornTar(f"ends at byte {size}, in the middle of a member")
        self.position = size


def open_skipping(url: str) -> BinaryIO:
    """A file to read here and there: remote ones in small pieces."""
    return store.open_url(url) if store.is_local(url) else cast(BinaryIO, RemoteFile(url, HEADER_PIECE))


def _place(samples: list[SampleScan], member: Member) -> SampleScan | None:
    """Add a member to the last sample or begin a new one; the sample, or None if the member belongs to none.

    A second member of the same name begins a sample too, so that none hides another.
    """
    split = split_name(member.name)
    if split is None:
        return None
    key, extension = split
    if not samples or samples[-1].key != key or extension in samples[-1].extensions:
        samples.append(SampleScan(key, member.start))
    samples[-1].extensions.append(extension)
    return samples[-1]


def duplicate_keys(samples: list[SampleScan]) -> Iterator[str]:
    """Each key that more than one sample of a shard has, once for every repetition."""
    seen = set()
    for sample in samples:
        if sample.key in seen:
            yield sample.key
        seen.add(sample.key)
