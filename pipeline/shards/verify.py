"""Checking shards against their index, every byte of them, and decoding every image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.config.data import WHITE
from pipeline.errors import DataError
from pipeline.images.decode import BadImage, decode, read_header
from pipeline.shards import store
from pipeline.shards.doubles import Doubles, Fingerprints, fingerprint
from pipeline.shards.index import ShardInfo, load_index
from pipeline.shards.parallel import map_shards
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.samples import IMAGE_KEYS, image_of, shard_samples
from pipeline.shards.scan import SampleScan, ShardScan, duplicate_keys, scan_shard
from pipeline.shards.sidecar import mend, read_sidecar
from pipeline.shards.tar import TornTar, parse_label


@dataclass(frozen=True)
class Fault:
    """What is wrong, with which shard, and with which sample unless it is the shard itself."""

    shard: str
    key: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.shard}{f' {self.key}' if self.key is not None else ''}: {self.message}"


def verify(pattern: str, *, decode_images: bool = True, workers: int | None = None) -> Iterator[Fault]:
    """Every fault of the shards that a pattern means: hash, tar structure, sidecar, labels, members, images, doubles.

    Doubles are keys that another sample has, and images that another sample has with another label; equal images of one
    label are not told. Without `decode_images`, images are not looked at.
    Raises DataError if there is no index to compare with.
    """
    index = load_index(pattern, check=False)
    known = set(index.names)
    for name in parse_pattern(pattern).select(store.list_sizes(index.url, index.names)):
        if name.endswith(".tar") and name not in known:
            yield Fault(store.join(index.url, name), None, f"not in the index; {mend(pattern)}")
    num_classes = len(index.classes) if index.classes is not None else None
    task = VerifyTask(index.label_key, num_classes, index.headers_only, decode_images)
    doubles = Doubles(index)
    for number, (faults, found) in enumerate(map_shards(task, index.shards, label="verifying", workers=workers)):
        yield from faults
        doubles.add(number, found)
    yield from (Fault(*double) for double in doubles.found())


@dataclass(frozen=True)
class VerifyTask:
    label_key: str
    num_classes: int | None
    headers_only: bool
    decode_images: bool

    def __call__(self, shard: ShardInfo) -> tuple[list[Fault], Fingerprints]:
        faults = self._of_shard(shard)
        found = Fingerprints.of([])
        try:
            if self.decode_images:
                of_images, found = images_of(shard, self.label_key)
                faults += of_images
        except DataError as error:
            message = str(error).removeprefix(f"{shard.url}: ")
            if message not in {fault.message for fault in faults}:
                faults.append(Fault(shard.url, None, message))
        return faults, found

    def _of_shard(self, shard: ShardInfo) -> list[Fault]:
        try:
            scan = scan_shard(shard.url, self.label_key, headers_only=self.headers_only)
        except (TornTar, DataError) as error:
            return [Fault(shard.url, None, str(error).removeprefix(f"{shard.url}: "))]
        faults = [Fault(shard.url, None, message) for message in _against_index(shard, scan)]
        faults += [Fault(shard.url, key, "this key was there before") for key in duplicate_keys(scan.samples)]
        for sample in scan.samples:
            faults += [Fault(shard.url, sample.key, message) for message in self._of_sample(sample)]
        return faults

    def _of_sample(self, sample: SampleScan) -> Iterator[str]:
        if not any(key in sample.extensions for key in IMAGE_KEYS):
            yield f"no image member ({', '.join(IMAGE_KEYS)}) but {', '.join(sample.extensions)}"
        if self.label_key not in sample.extensions:
            yield f"no label member ({self.label_key})"
        elif sample.label is None:
            yield f"its label ({self.label_key}) is not a decimal number"
        elif self.num_classes is not None and sample.label >= self.num_classes:
            yield f"label {sample.label} is outside the {self.num_classes} classes"


def _against_index(shard: ShardInfo, scan: ShardScan) -> Iterator[str]:
    found = scan.sidecar
    if found.tar_bytes != shard.bytes:
        yield f"{found.tar_bytes:,} bytes, but {shard.bytes:,} in the index"
    elif found.sha256 != shard.sha256:
        yield f"its SHA-256 is {found.sha256[:12]}.., but {shard.sha256[:12]}.. in the index: its bytes have changed"
    if found.samples != shard.samples:
        yield f"{found.samples:,} samples, but {shard.samples:,} in the index"
    try:
        sidecar = read_sidecar(shard.url)
    except DataError as error:
        yield str(error)
        return
    if (sidecar.tar_bytes, sidecar.sha256) != (shard.bytes, shard.sha256):
        yield "its sidecar belongs to another tar than the index describes"
    elif not np.array_equal(sidecar.offsets, found.offsets):
        yield "its sidecar's offsets are not where the samples begin"


def images_of(shard: ShardInfo, label_key: str) -> tuple[list[Fault], Fingerprints]:
    """Images of a shard that cannot be decoded, and what its samples are known by."""
    faults, rows = [], []
    for _, key, members, tear in shard_samples(shard):
        if members is None:
            faults.append(Fault(shard.url, key, tear))
            members = {}
        image = image_of(members)
        label = parse_label(bytes(members.get(label_key, b"")))
        if image is not None:
            try:
                header = read_header(image)
                decode(image, header, 1 if header.mode == "L" else 3, WHITE)
            except BadImage as bad:
                faults.append(Fault(shard.url, key, str(bad)))
        hashes = fingerprint(key.encode("utf-8", "surrogateescape")), fingerprint(image or b"")
        rows.append((*hashes, -1 if label is None else label))
    return faults, Fingerprints.of(rows)
