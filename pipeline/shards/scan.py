"""Reading one tar from end to end: its samples, labels and hash in a single pass."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from pipeline.shards import store
from pipeline.shards.members import DEFAULT_KEYS, LONGEST_LABEL, Keys, parse_label, split_name
from pipeline.shards.remote import RemoteFile
from pipeline.shards.sidecar import Sidecar
from pipeline.shards.tar import SKIP_CHUNK, Member, TarStream, TornTar, first_content, members

IMAGE_SUFFIXES = {"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm"}
LOOKED_AT = 16  # samples that show what the images of a data set are named; each may take a request
HEADER_PIECE = 32 << 10  # bytes of one request where only headers and labels are wanted


@dataclass
class SampleScan:
    """One sample as it lies in the tar. `label` is None if its member is missing or not a number."""

    key: str
    start: int
    extensions: dict[str, int] = field(default_factory=dict)  # bytes of each
    label: int | None = None


class Lacks(NamedTuple):
    """How many samples cannot be used, by what they lack; `unusable` counts one that lacks several things once."""

    image: int = 0  # none, or one without bytes
    label: int = 0
    number: int = 0  # the label is not a class number
    unusable: int = 0

    def plus(self, other: Lacks) -> Lacks:
        return Lacks(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING = Lacks()


@dataclass(frozen=True)
class ShardRecord:
    """A shard's row in the index; the label bounds are None if no sample has a class number."""

    name: str
    samples: int
    bytes: int
    sha256: str
    label_min: int | None
    label_max: int | None
    lacks: Lacks = NOTHING


@dataclass
class Tally:
    """What the samples of a shard add up to."""

    keys: Keys
    labels: set[int] = field(default_factory=set)
    lacks: Lacks = NOTHING

    def add(self, extensions: Mapping[str, int], label: int | None) -> None:
        """A sample, by the bytes of its members."""
        if label is not None:
            self.labels.add(label)
        image = self.keys.image_extension(extensions)
        no_image = image is None or not extensions[image]
        if no_image or label is None:
            no_label = self.keys.label not in extensions
            self.lacks = self.lacks.plus(Lacks(no_image, no_label, label is None and not no_label, 1))

    def record(self, name: str, sidecar: Sidecar) -> ShardRecord:
        low, high = (min(self.labels), max(self.labels)) if self.labels else (None, None)
        return ShardRecord(name, sidecar.samples, sidecar.tar_bytes, sidecar.sha256, low, high, self.lacks)


@dataclass(frozen=True)
class ShardScan:
    sidecar: Sidecar
    samples: list[SampleScan]
    keys: Keys
    unread_bytes: int  # behind the end-of-archive marker, but for padding
    links: int  # members of samples that are links, which hold no bytes

    def record(self, name: str) -> ShardRecord:
        tally = Tally(self.keys)
        for sample in self.samples:
            tally.add(sample.extensions, sample.label)
        return tally.record(name, self.sidecar)

    def faults(self) -> Iterator[str]:
        """Why this tar cannot be read sample by sample though it is whole; `minivit shards regroup` fixes it."""
        apart = scattered(self.samples)
        if apart:
            pieces = [", ".join(sample.extensions) for sample in self.samples if sample.key == apart[0]]
            yield (
                f"the members of {len(apart):,} samples are scattered, first those of {apart[0]!r} "
                f"({' | '.join(pieces)}), but a sample is read in one piece (`tar --sort=name` writes its members side "
                "by side)"
            )
        if self.unread_bytes:
            yield (
                f"{self.unread_bytes:,} bytes follow its end-of-archive marker, where tar readers stop; "
                "perhaps it is several tars in one file"
            )


def scan_shard(url: str, keys: Keys = DEFAULT_KEYS, *, headers_only: bool = False) -> ShardScan:
    """Read a tar once, forwards. Raises TornTar (no file named) for a damaged one, DataError for an unreadable one.

    With `headers_only`, headers and labels alone are read, by ranges where the tar is remote; the hash is theirs.
    """
    digest = hashlib.sha256()
    with open_skipping(url) if headers_only else store.open_url(url) as file:
        stream = SkippingStream(file, digest.update, url) if headers_only else TarStream(file, digest.update)
        samples: list[SampleScan] = []
        end = 0
        for member in members(stream):
            extension = _place(samples, member)
            if extension is None:
                continue
            end = member.end
            if extension == keys.label and member.size <= LONGEST_LABEL:
                samples[-1].label = parse_label(stream.read(member.size))
        unread_bytes = stream.drain()
    starts = [sample.start for sample in samples]
    offsets = np.array([*starts, end if samples else 0], np.uint64)
    sidecar = Sidecar(stream.position, digest.hexdigest(), offsets)
    return ShardScan(sidecar, samples, keys, unread_bytes, stream.links)


def guess_image(url: str, keys: Keys) -> Keys:
    """The keys, unless the first samples of a shard have images under one other extension alone: then with that."""
    extensions = first_extensions(url)
    images = [extension for extension in extensions if extension.rpartition(".")[2] in IMAGE_SUFFIXES]
    if len(images) != 1 or keys.image_extension(extensions):
        return keys
    return Keys((images[0],), keys.label)


def first_extensions(url: str) -> set[str]:
    """What the members of a shard's first samples are named."""
    samples: list[SampleScan] = []
    with contextlib.suppress(TornTar), open_skipping(url) as file:
        for member in members(SkippingStream(file, lambda _: None, url)):
            _place(samples, member)
            if len(samples) > LOOKED_AT:
                break
    return {extension for sample in samples for extension in sample.extensions}


class SkippingStream(TarStream):
    """Skips what is not asked for."""

    def __init__(self, file: BinaryIO, observe: Callable[[bytes], object], url: str) -> None:
        super().__init__(file, observe)
        self.url = url

    def advance(self, position: int) -> None:
        if position > self.position:
            self.file.seek(position - self.position, os.SEEK_CUR)
            self.position = position

    def drain(self) -> int:
        """To the end of the file, as far as it is padding. TornTar if it ends before the last member."""
        size, content = store.file_size(self.url), None
        if size < self.position:
            raise TornTar(f"ends at byte {size}, in the middle of a member")
        while content is None and (data := self.file.read(min(SKIP_CHUNK, size - self.position))):
            content = first_content(data, self.position)
            self.position += len(data)
        self.position = size
        return 0 if content is None else size - content


def open_skipping(url: str) -> BinaryIO:
    """A file for scattered reads: remote ones in small pieces."""
    return store.open_url(url) if store.is_local(url) else cast(BinaryIO, RemoteFile(url, HEADER_PIECE))


def _place(samples: list[SampleScan], member: Member) -> str | None:
    """Add a member to the last sample or begin a new one; its extension, or None if the member belongs to none.

    A second member of the same name begins a sample too, so that none hides another.
    """
    split = split_name(member.name)
    if split is None:
        return None
    key, extension = split
    if not samples or samples[-1].key != key or extension in samples[-1].extensions:
        samples.append(SampleScan(key, member.start))
    samples[-1].extensions[extension] = member.size
    return extension


def scattered(samples: list[SampleScan]) -> list[str]:
    """Keys whose members lie in several places; one that occurs twice with the same members is only a duplicate."""
    if len({sample.key for sample in samples}) == len(samples):
        return []
    there: dict[str, set[str]] = {}
    found: dict[str, None] = {}
    for sample in samples:
        earlier = there.setdefault(sample.key, set())
        if earlier and earlier.isdisjoint(sample.extensions):
            found[sample.key] = None
        earlier.update(sample.extensions)
    return list(found)


def duplicate_keys(samples: list[SampleScan]) -> Iterator[str]:
    """Each key that more than one sample of a shard has, once for every repetition."""
    seen = set()
    for sample in samples:
        if sample.key in seen:
            yield sample.key
        seen.add(sample.key)
