"""The sidecar `<shard>.tar.idx`: where each sample starts in its tar, and which tar it belongs to.

Little endian, so that it can be memory-mapped: magic, version, header size, tar size, number of samples, the tar's
SHA-256, then `samples + 1` offsets of 8 bytes. Sample i is the tar's bytes offsets[i] to offsets[i + 1]: whole members.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError
from pipeline.shards import store

SUFFIX = ".idx"
MAGIC = b"MINIVIT\0"
VERSION = 1
HEADER = struct.Struct("<8sIIQQ32s")
OFFSET = np.dtype("<u8")


@dataclass(frozen=True)
class Sidecar:
    tar_bytes: int
    sha256: str
    offsets: np.ndarray  # uint64 [samples + 1]

    @property
    def samples(self) -> int:
        return len(self.offsets) - 1

    def encode(self) -> bytes:
        return header_of(self.tar_bytes, self.samples, self.sha256) + self.offsets.astype(OFFSET).tobytes()


def sidecar_bytes(samples: int) -> int:
    """Size in bytes of the sidecar of a tar with this many samples."""
    return HEADER.size + OFFSET.itemsize * (samples + 1)


def write_sidecar(shard_url: str, sidecar: Sidecar) -> None:
    store.write_bytes(shard_url + SUFFIX, sidecar.encode())


def read_sidecar(shard_url: str) -> Sidecar:
    """Reads the sidecar of a tar and checks its consistency. Raises DataError."""
    return parse_sidecar(store.read_bytes(shard_url + SUFFIX), shard_url)


def header_of(tar_bytes: int, samples: int, sha256: str) -> bytes:
    """The first bytes of the sidecar of such a tar."""
    return HEADER.pack(MAGIC, VERSION, HEADER.size, tar_bytes, samples, bytes.fromhex(sha256))


def parse_sidecar(data: bytes, shard_url: str) -> Sidecar:
    """Like `read_sidecar`, from the file's bytes."""
    url = shard_url + SUFFIX
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise DataError(f"{url}: not a shard's sidecar; {index_remedy(shard_url)}")
    _, version, header_bytes, tar_bytes, samples, digest = HEADER.unpack_from(data)
    if version != VERSION or header_bytes != HEADER.size:
        raise DataError(
            f"{url}: found sidecar version {version}, but this release reads {VERSION}; {index_remedy(shard_url)}"
        )
    if len(data) != sidecar_bytes(samples):
        raise DataError(
            f"{url}: {len(data)} bytes, but {samples} samples need {sidecar_bytes(samples)}; {index_remedy(shard_url)}"
        )
    offsets = np.frombuffer(data, OFFSET, offset=HEADER.size)
    if offsets[-1] > tar_bytes or np.any(offsets[1:] < offsets[:-1]):
        raise DataError(f"{url}: its offsets are not in order within the tar; {index_remedy(shard_url)}")
    return Sidecar(tar_bytes, digest.hex(), offsets)


def index_remedy(pattern: str) -> str:
    """The end of an error message about an index: how to fix it."""
    return f"run `minivit shards index '{pattern}'`"
