"""Finds where a shard's samples begin when it is first read, if only their number was known before."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np

from pipeline.errors import DataError
from pipeline.shards import store
from pipeline.shards.remote import PIECE
from pipeline.shards.scan import scan_shard
from pipeline.shards.sidecar import MAGIC, OFFSET, SUFFIX, write_sidecar
from pipeline.shards.tar import TornTar


def first_offsets(url: str, samples: int, size: int, identity: str) -> np.ndarray:
    """uint64 [samples + 1]: sample i is the tar's bytes offsets[i] to offsets[i + 1].

    Offsets that Megatron-Energon wrote with the shard are used unchanged. Otherwise the tar is scanned, and a sidecar
    with the hash `identity` is written if the folder is writable. Raises DataError if the tar is damaged, or does not
    have this number of samples in `size` bytes.
    """
    try:
        beside = store.read_bytes(url + SUFFIX)
    except DataError:
        beside = b""
    offsets = energon_offsets(beside, samples, size)
    if offsets is not None:
        return offsets
    try:
        scan = scan_shard(url, headers_only=True, piece=PIECE)  # a piece holds many samples, unless they are large
    except TornTar as tear:
        raise DataError(f"{url}: {tear}; {tear.remedy}, then index again") from None
    for fault in scan.faults(url):
        raise DataError(f"{url}: {fault}")
    found = scan.sidecar
    if (found.samples, found.tar_bytes) != (samples, size):
        raise DataError(
            f"{url}: found {found.samples:,} samples in {found.tar_bytes:,} bytes, but its count says {samples:,} in "
            f"{size:,}; run `minivit shards index` on its folder without --counts"
        )
    if not beside or beside.startswith(MAGIC):  # else the file is another tool's
        with contextlib.suppress(DataError):
            write_sidecar(url, replace(found, sha256=identity))
    return found.offsets


def energon_offsets(data: bytes, samples: int, size: int) -> np.ndarray | None:
    """The offsets in Megatron-Energon's `<shard>.tar.idx`, which has nothing else; None if they are invalid."""
    if len(data) != OFFSET.itemsize * (samples + 1):
        return None
    offsets = np.frombuffer(data, OFFSET)
    return offsets if offsets[-1] <= size and bool(np.all(offsets[1:] > offsets[:-1])) else None
