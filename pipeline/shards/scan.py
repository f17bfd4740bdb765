"""Scans one tar from end to end: its samples, the content of their targets, and its hash in a single pass."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import numpy as np

from pipeline.shards import store, urls
from pipeline.shards.members import DEFAULT_KEYS, Keys, split_name
from pipeline.shards.remote import RemoteFile
from pipeline.shards.sidecar import Sidecar
from pipeline.shards.tar import SKIP_CHUNK, Member, TarStream, TornTar, first_content, members
from pipeline.targets.base import COUNTS, BadLabel, Merge, Summary, Target, total

IMAGE_SUFFIXES = {"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm"}
LOOKED_AT = 16  # samples inspected for the extension of images; each may take a request
HEADER_PIECE = 32 << 10  # bytes per request when reading only headers and labels


@dataclass
class SampleScan:
    """One sample as stored in the tar."""

    key: str
    start: int
    extensions: dict[str, int] = field(default_factory=dict)  # bytes of each
    content: dict[str, bytes] = field(default_factory=dict)  # of the members that targets read


@dataclass(frozen=True)
class ShardRecord:
    """A shard's row in the index."""

    name: str
    samples: int
    bytes: int
    sha256: str
    without_image: int = 0  # samples; an empty image counts as missing
    targets: Mapping[str, Summary] = field(default_factory=dict)  # by kind


class Tally:
    """Accumulates the summary of a shard's samples."""

    def __init__(self, keys: Keys, targets: Sequence[Target]) -> None:
        self._keys, self._targets, self._without_image = keys, targets, 0
        self._columns: dict[str, dict[str, list[int | None]]] = {
            target.kind: {name: [] for name in columns_of(target)} for target in targets
        }

    def add(self, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> None:
        """Adds a sample: the sizes of its members in bytes, and the content of those that targets read."""
        image = self._keys.image_extension(sizes)
        no_image = image is None or not sizes[image]
        self._without_image += no_image
        for target in self._targets:
            row = summary_of(target, sizes, content)
            row["unusable"] = int(no_image or row["missing"] or row["bad"])
            for name, values in self._columns[target.kind].items():
                values.append(row.get(name))

    def record(self, name: str, sidecar: Sidecar) -> ShardRecord:
        summaries = {target.kind: total(self._columns[target.kind], columns_of(target)) for target in self._targets}
        return ShardRecord(name, sidecar.samples, sidecar.tar_bytes, sidecar.sha256, self._without_image, summaries)


def columns_of(target: Target | type[Target]) -> dict[str, Merge]:
    """The index columns of a kind of target."""
    return {**COUNTS, **target.columns}


def summary_of(target: Target, sizes: Mapping[str, int], content: Mapping[str, bytes]) -> dict[str, int]:
    """One sample's columns, except `unusable`."""
    if not sizes.keys() >= set(target.members):
        return {"missing": 1, "bad": 0}
    try:
        return {"missing": 0, "bad": 0, **target.summarise(sizes, content)}
    except BadLabel:
        return {"missing": 0, "bad": 1}


@dataclass(frozen=True)
class ShardScan:
    sidecar: Sidecar
    samples: list[SampleScan]
    keys: Keys
    targets: Sequence[Target]
    unread_bytes: int  # after the end-of-archive marker, excluding padding
    links: int  # members of samples that are links, which have no content

    def record(self, name: str) -> ShardRecord:
        tally = Tally(self.keys, self.targets)
        for sample in self.samples:
            tally.add(sample.extensions, sample.content)
        return tally.record(name, self.sidecar)

    def faults(self, pattern: str) -> Iterator[str]:
        """Why this tar, though intact, cannot be read sample by sample, and the remedy for the tars of a pattern."""
        apart = scattered(self.samples)
        if apart:
            pieces = [", ".join(sample.extensions) for sample in self.samples if sample.key == apart[0]]
            yield (
                f"the members of {len(apart):,} samples are scattered, such as those of {apart[0]!r} "
                f"({' | '.join(pieces)}), but a sample must be in one piece (`tar --sort=name` writes its members "
                f"side by side); {regroup_remedy(pattern)}"
            )
        if self.unread_bytes:
            yield (
                f"{self.unread_bytes:,} bytes follow its end-of-archive marker, where tar readers stop; it may be "
                f"several tars in one file; {regroup_remedy(pattern)}"
            )
        if self.links:
            yield (
                f"{self.links:,} members of samples are links, which have no content; write the tar with --dereference "
                f"--hard-dereference, or run `minivit shards regroup '{pattern}' --out FOLDER`, which leaves them out"
            )


def scan_shard(
    url: str,
    keys: Keys = DEFAULT_KEYS,
    targets: Sequence[Target] = (),
    *,
    headers_only: bool = False,
    piece: int = HEADER_PIECE,
) -> ShardScan:
    """Reads a tar once, sequentially. Raises TornTar (without a file name) if it is damaged, DataError if unreadable.

    `headers_only` reads and hashes only headers and labels, by ranges of `piece` bytes if the tar is remote.
    """
    digest, wanted = hashlib.sha256(), reads_of(targets)
    with open_skipping(url, piece) if headers_only else store.open_url(url) as file:
        stream = SkippingStream(file, digest.update, url) if headers_only else TarStream(file, digest.update)
        samples: list[SampleScan] = []
        end = 0
        for member in members(stream):
            extension = _place(samples, member)
            if extension is None:
                continue
            end = member.end
            if member.size <= wanted.get(extension, -1):
                samples[-1].content[extension] = stream.read(member.size)
        unread_bytes = stream.drain()
    starts = [sample.start for sample in samples]
    offsets = np.array([*starts, end if samples else 0], np.uint64)
    sidecar = Sidecar(stream.position, digest.hexdigest(), offsets)
    return ShardScan(sidecar, samples, keys, targets, unread_bytes, stream.links)


def reads_of(targets: Sequence[Target]) -> dict[str, int]:
    """The largest size of members to read, in bytes, by extension."""
    wanted: dict[str, int] = {}
    for target in targets:
        for extension in target.members if target.reads else ():
            wanted[extension] = max(target.reads, wanted.get(extension, 0))
    return wanted


def guess_image(extensions: set[str], keys: Keys) -> Keys:
    """The keys, or those of the only image extension among the first samples' members if the keys match none."""
    images = [extension for extension in extensions if extension.rpartition(".")[2] in IMAGE_SUFFIXES]
    if len(images) != 1 or keys.image_extension(extensions):
        return keys
    return Keys((images[0],))


def first_extensions(url: str) -> set[str]:
    """The extensions of the members of a shard's first samples."""
    samples: list[SampleScan] = []
    with contextlib.suppress(TornTar), open_skipping(url) as file:
        for member in members(SkippingStream(file, lambda _: None, url)):
            _place(samples, member)
            if len(samples) > LOOKED_AT:
                break
    return {extension for sample in samples for extension in sample.extensions}


class SkippingStream(TarStream):
    """Seeks past bytes instead of reading them."""

    def __init__(self, file: BinaryIO, observe: Callable[[bytes], object], url: str) -> None:
        super().__init__(file, observe)
        self.url = url

    def advance(self, position: int) -> None:
        if position > self.position:
            self.file.seek(position - self.position, os.SEEK_CUR)
            self.position = position

    def drain(self) -> int:
        """Like `TarStream.drain`, but reads only the padding. TornTar if the file ends before the last member does."""
        size, content = store.file_size(self.url), None
        if size < self.position:
            raise TornTar(f"ends at byte {size}, in the middle of a member")
        while content is None and (data := self.file.read(min(SKIP_CHUNK, size - self.position))):
            content = first_content(data, self.position)
            self.position += len(data)
        self.position = size
        return 0 if content is None else size - content


def open_skipping(url: str, piece: int = HEADER_PIECE) -> BinaryIO:
    """Opens a file for scattered reads, which fetch remote files in pieces of that many bytes."""
    return store.open_url(url) if urls.is_local(url) else cast(BinaryIO, RemoteFile(url, piece))


def regroup_remedy(pattern: str) -> str:
    """The end of an error message: how to fix tars whose samples are scattered."""
    return f"run `minivit shards regroup '{pattern}' --out FOLDER`, which rewrites them with each sample in one piece"


def _place(samples: list[SampleScan], member: Member) -> str | None:
    """Adds a member to the last sample or begins a new one; returns its extension, or None if it belongs to no sample.

    A second member of the same name also begins a new sample, so that none hides another.
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
    """Keys whose members are scattered; a key that repeats with the same members is only a duplicate."""
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
    """Yields each key that several samples of a shard share, once per repetition."""
    seen = set()
    for sample in samples:
        if sample.key in seen:
            yield sample.key
        seen.add(sample.key)
