"""Writes shards atomically and reproducibly: the same samples give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from pipeline.shards.members import DEFAULT_KEYS, Keys
from pipeline.shards.scan import ShardRecord, Tally, reads_of
from pipeline.shards.sidecar import SUFFIX, Sidecar, write_sidecar
from pipeline.shards.store_errors import unwritable
from pipeline.shards.tar import BLOCK, read_sample
from pipeline.targets.base import Target

END_OF_ARCHIVE = bytes(2 * BLOCK)


class TarWriter:
    """One tar, built under a temporary name and moved into place, with its sidecar, by `finish`.

    As a context manager, it leaves nothing behind unless it was finished. Headers contain no time, owner or machine, so
    equal samples give equal files. The row that `finish` returns summarises the given targets. Raises DataError if the
    disk is full or not writable.
    """

    def __init__(self, path: Path, keys: Keys = DEFAULT_KEYS, targets: Sequence[Target] = ()):
        self.path, self.tally, self._wanted = path, Tally(keys, targets), reads_of(targets)
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.starts: list[int] = []
        self.position = 0
        self.digest = hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.temporary, "wb")  # noqa: SIM115, closed by finish or abandon
        except OSError as error:
            raise unwritable(path, error) from None

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds a sample: its bytes by extension. `key` must be unique in the data set, its base name without a dot."""
        assert "." not in key.rsplit("/", 1)[-1], f"the part of {key!r} after the dot would become an extension"
        self.starts.append(self.position)
        for extension, data in members.items():
            self._put(tar_member(f"{key}.{extension}", data))
        self._count(members)

    def copy(self, data: bytes) -> None:
        """Adds a sample as stored in another tar: whole members, headers included. Raises TornTar."""
        self._count(read_sample(data)[1])
        self.starts.append(self.position)
        self._put(data)

    def finish(self) -> ShardRecord:
        end = self.position
        self._put(END_OF_ARCHIVE)
        sidecar = Sidecar(self.position, self.digest.hexdigest(), np.array([*self.starts, end], np.uint64))
        sidecar_path = self.path.with_name(self.path.name + SUFFIX)
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            sidecar_path.unlink(missing_ok=True)  # an interruption then leaves no sidecar of another tar
            os.replace(self.temporary, self.path)
        except OSError as error:
            self.abandon()
            raise unwritable(self.path, error) from None
        write_sidecar(str(self.path), sidecar)
        return self.tally.record(self.path.name, sidecar)

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Removes an unfinished tar; does nothing to a finished one."""
        with contextlib.suppress(OSError):  # flushing fails on a full disk, too
            self.file.close()
        self.temporary.unlink(missing_ok=True)

    def _count(self, members: Mapping[str, bytes | memoryview]) -> None:
        sizes = {extension: len(data) for extension, data in members.items()}
        read = {one: bytes(members[one]) for one, most in self._wanted.items() if sizes.get(one, most + 1) <= most}
        self.tally.add(sizes, read)

    def _put(self, data: bytes) -> None:
        try:
            self.file.write(data)
        except OSError as error:
            raise unwritable(self.path, error) from None
        self.digest.update(data)
        self.position += len(data)


class ShardWriter:
    """Writes samples to shards `<prefix>-000000.tar`, ..., with `samples_per_shard` in each but the last.

    Use as a context manager; afterwards, `records` are the shards' rows for `make_index`. Shards finished before an
    error are kept. Raises DataError if the disk is full or not writable.
    """

    def __init__(self, folder: Path, prefix: str, samples_per_shard: int, targets: Sequence[Target] = ()):
        self.folder, self.prefix, self.samples_per_shard, self.targets = folder, prefix, samples_per_shard, targets
        self.records: list[ShardRecord] = []
        self.current: TarWriter | None = None

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds a sample: its bytes by extension."""
        if self.current is None:
            name = shard_name(self.prefix, len(self.records))
            self.current = TarWriter(self.folder / name, targets=self.targets)
        self.current.write(key, members)
        if len(self.current.starts) == self.samples_per_shard:
            self._finish()

    def _finish(self) -> None:
        if self.current is not None:
            self.records.append(self.current.finish())
            self.current = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._finish()
        elif self.current is not None:
            self.current.abandon()


def tar_member(name: str, data: bytes) -> bytes:
    """A file as stored in a tar: header, data, padding."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % BLOCK)


def shard_name(prefix: str, number: int) -> str:
    return f"{prefix}-{number:06d}.tar"
