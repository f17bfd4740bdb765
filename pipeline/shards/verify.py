"""Verifies shards: compares every byte with the index, decodes every image, and looks for duplicates."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pipeline.config.data import WHITE
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, decode, read_header
from pipeline.images.geometry import Size
from pipeline.shards import store, urls
from pipeline.shards.compressed import advice
from pipeline.shards.duplicates import EMPTY, DuplicateFinder, Fingerprints, fingerprint, overlap
from pipeline.shards.index import HEADERS, ShardInfo
from pipeline.shards.index_file import load_index
from pipeline.shards.members import Keys, Unusable
from pipeline.shards.named_sets import NamedSet, named_set
from pipeline.shards.parallel import Mapper, map_shards
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.samples import shard_samples
from pipeline.shards.scan import SampleScan, ShardScan, duplicate_keys, reads_of, scan_shard
from pipeline.shards.sidecar import index_remedy, read_sidecar
from pipeline.shards.tar import TornTar
from pipeline.targets import tool_targets
from pipeline.targets.base import BadLabel, Target


class Kind(enum.Enum):
    """The kind of a fault: its noun, its location, and advice on how to fix it."""

    SHARD = "fault", "in whole shards", ": copy or make those shards again, then index them"
    SAMPLE = (
        "fault",
        "in samples",
        ", which runs leave out: correct them at their source and make the shards again",
    )
    OVERLAP = (
        "overlap",
        "between data sets",
        ": a model would be evaluated on what it was trained on; remove them from one of the two",
    )
    DOUBLE = (
        "duplicate",
        "already in the source",
        ": the shards are intact; remove them at the source if unwanted",
    )

    @property
    def is_fault(self) -> bool:
        """Whether data are damaged or unusable together; duplicates in an intact source are neither."""
        return self is not Kind.DOUBLE

    def summary(self, number: int) -> str:
        return f"{self.count(number)}{self.value[2]}"

    def count(self, number: int, more: str = "") -> str:
        noun, where, _ = self.value
        return f"{number:,} {more}{noun}{'s' if number > 1 else ''} {where}"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a shard, or with one of its samples if `key` is given."""

    shard: str
    key: str | None
    message: str
    kind: Kind = Kind.SHARD

    def __str__(self) -> str:
        return f"{self.shard}{f' {self.key}' if self.key is not None else ''}: {self.message}"


def verify_shards(
    *sets: NamedSet | str, decode_images: bool = True, workers: int | None = None, mapper: Mapper = map_shards
) -> Iterator[Fault]:
    """Yields faults of data sets (text is a pattern): hash, tar, sidecar, labels, members, images, duplicates, overlap.

    Duplicates are equal images, and equal keys in one shard. Overlap is an image in two of the sets. A torn shard is
    one fault. Without `decode_images`, images are not checked.
    Raises DataError if there is no index to compare with.
    """
    seen: list[tuple[NamedSet, DuplicateFinder]] = []
    for one in [named_set(one) if isinstance(one, str) else one for one in sets]:
        duplicates = DuplicateFinder(load_index(one.pattern, check=False))
        yield from _of_set(one, duplicates, decode_images, partial(mapper, label="verifying", workers=workers))
        for earlier, theirs in seen:
            for duplicate in overlap(theirs, duplicates, earlier.name):
                yield Fault(*duplicate, Kind.OVERLAP)
        seen.append((one, duplicates))


def _of_set(
    one: NamedSet, duplicates: DuplicateFinder, decode_images: bool, mapper: Callable[..., Iterator[Any]]
) -> Iterator[Fault]:
    index, parsed = duplicates.index, parse_pattern(one.pattern)
    targets = one.targets(index)
    if index.hash_of == HEADERS and (others := reads_of(targets).keys() - reads_of(tool_targets(index.members))):
        asked = next(target for target in targets if others & set(target.members))
        raise DataError(
            f"{index.url}: its index was made with --headers-only and without {asked.members[0]!r}; "
            f"{index_remedy(one.pattern)} --target {asked.kind}={asked.members[0]}"
        )
    listing, known = store.list_sizes(index.url, index.names), set(index.names)
    for name in parsed.select(listing):
        if name.endswith(".tar") and name not in known:
            yield Fault(urls.join(index.url, name), None, f"not in the index; {index_remedy(one.pattern)}")
    if packed := parsed.select_packed(listing):
        url, message = advice(index.url, packed).split(": ", 1)
        yield Fault(url, None, message)
    task = VerifyTask(one.pattern, one.keys(index), targets, index.hash_of == HEADERS, decode_images)
    for number, (faults, found) in enumerate(mapper(task, index.shards)):
        yield from faults
        duplicates.add(number, found)
    for duplicate in duplicates.found():
        yield Fault(*duplicate, Kind.DOUBLE)


@dataclass(frozen=True)
class VerifyTask:
    pattern: str
    keys: Keys
    targets: Sequence[Target]
    headers_only: bool
    decode_images: bool

    def __call__(self, shard: ShardInfo) -> tuple[list[Fault], Fingerprints]:
        found = Fingerprints.of([])
        try:
            scan = scan_shard(shard.url, self.keys, self.targets, headers_only=self.headers_only)
        except (TornTar, DataError) as error:
            return [unreadable_shard(shard, error)], found
        faults = self._of_scan(shard, scan)
        damaged = any(fault.kind is Kind.SHARD for fault in faults)
        if self.decode_images:
            try:
                of_images, found = contents_of(shard, self.keys, self.targets)
            except DataError as error:
                of_images = [unreadable_shard(shard, error)]
            # Samples that are not where the sidecar says result from damage already reported.
            faults += [fault for fault in of_images if not (damaged and fault.kind is Kind.SHARD)]
        return faults, found

    def _of_scan(self, shard: ShardInfo, scan: ShardScan) -> list[Fault]:
        faults = [Fault(shard.url, None, message) for message in _against_index(shard, scan)]
        faults += [Fault(shard.url, None, message) for message in scan.faults(self.pattern)]
        for key in duplicate_keys(scan.samples):
            faults.append(Fault(shard.url, key, "duplicate key", Kind.DOUBLE))
        for sample in scan.samples:
            faults += [Fault(shard.url, sample.key, message, Kind.SAMPLE) for message in self._of_sample(sample)]
        return faults

    def _of_sample(self, sample: SampleScan) -> Iterator[str]:
        try:
            size = self.keys.image_of(sample.extensions)
        except Unusable as reason:
            yield str(reason)
        else:
            if not size and not self.decode_images:
                yield "the image is empty"
        for target in self.targets:
            lacks = [one for one in target.members if one not in sample.extensions]
            if lacks:
                yield f"no {target.kind} member (looked for {lacks[0]}; found {', '.join(sample.extensions)})"
            elif target.reads and not (target.moves and self.decode_images):
                yield from target.verify(sample.content, None)


def unreadable_shard(shard: ShardInfo, error: Exception) -> Fault:
    return Fault(shard.url, None, str(error).removeprefix(f"{shard.url}: "))


def _against_index(shard: ShardInfo, scan: ShardScan) -> Iterator[str]:
    found = scan.sidecar
    if found.tar_bytes != shard.bytes:
        yield f"{found.tar_bytes:,} bytes, but {shard.bytes:,} in the index"
        return
    if shard.scanned and found.sha256 != shard.sha256:
        yield f"its SHA-256 is {found.sha256[:12]}.., but {shard.sha256[:12]}.. in the index: its bytes have changed"
        return
    if found.samples != shard.samples:
        yield f"{found.samples:,} samples, but {shard.samples:,} in the index"
    if not shard.scanned:
        return
    try:
        sidecar = read_sidecar(shard.url)
    except DataError as error:
        yield str(error)
        return
    if (sidecar.tar_bytes, sidecar.sha256) != (shard.bytes, shard.sha256):
        yield "its sidecar belongs to another tar than the one in the index"
    elif not np.array_equal(sidecar.offsets, found.offsets):
        yield "its sidecar's offsets are not where the samples begin"


def contents_of(shard: ShardInfo, keys: Keys, targets: Sequence[Target]) -> tuple[list[Fault], Fingerprints]:
    """Faults of a shard's images and labels, and the fingerprints of its samples."""
    faults, rows = [], []
    for _, key, members, tear in shard_samples(shard):
        if members is None:
            faults.append(Fault(shard.url, key, tear))
            rows.append((EMPTY, -1))
            continue
        extension = keys.image_extension(members)
        image = members[extension] if extension is not None else None
        if image is not None:
            try:
                header = read_header(image)
                decode(image, header, 1 if header.mode == "L" else 3, WHITE)
            except BadImage as bad:
                faults.append(Fault(shard.url, key, str(bad), Kind.SAMPLE))
            else:
                wrong = wrong_labels(members, targets, (header.height, header.width))
                faults += [Fault(shard.url, key, message, Kind.SAMPLE) for message in wrong]
        rows.append((fingerprint(image or b""), known_label(members, targets)))
    return faults, Fingerprints.of(rows)


def wrong_labels(members: dict[str, memoryview], targets: Sequence[Target], image: Size) -> Iterator[str]:
    """Yields faults of labels that have positions in the image, or are too large to be read with the headers."""
    for target in targets:
        if (target.moves or not target.reads) and members.keys() >= set(target.members):
            yield from target.verify(members, image)


def known_label(members: dict[str, memoryview], targets: Sequence[Target]) -> int:
    """A number that distinguishes the labels of equal images; -1 if there is none."""
    for target in targets:
        if target.reads:
            with contextlib.suppress(BadLabel, DataError):
                return target.number(target.decode(members, None))
    return -1
