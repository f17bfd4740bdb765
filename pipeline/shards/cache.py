"""A local LRU cache of remote shards, with one file per block.

Any number of processes can share a folder. A block's name is the hash of its URL, the shard's content and its number,
so a rewritten shard gets new blocks. Blocks are written atomically (by renaming) and end with their checksum.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.shards import store

log = logging.getLogger(__name__)

BLOCK = 4 << 20  # bytes of a file that are fetched and cached together
CHECKSUM_BYTES = 4
ROOM = 0.9  # share of the limit in use after an eviction, so that not every new block needs one

Fetch = Callable[[str, int, int], bytes]


class RangeCache:
    """Reads byte ranges of immutable files through a cache folder of at most `limit_bytes`."""

    def __init__(self, folder: str, limit_bytes: int, fetch: Fetch = store.read_range) -> None:
        self.folder, self.limit_bytes, self.fetch = Path(folder), limit_bytes, fetch
        self._writable = True

    def read(self, url: str, identity: str, size: int, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file of `size` bytes; `identity` identifies its content. Raises DataError."""
        parts = []
        for number in range(start // BLOCK, -(-stop // BLOCK)):
            first = number * BLOCK
            block = self._block(url, identity, number, first, min(first + BLOCK, size))
            parts.append(block[max(start - first, 0) : stop - first])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, url: str, identity: str, number: int, first: int, last: int) -> bytes:
        name = hashlib.sha256(f"{url}\0{identity}\0{number}".encode("utf-8", "surrogateescape")).hexdigest()
        path = self.folder / name
        data = self._kept(path, last - first)
        if data is None:
            data = self.fetch(url, first, last)
            if len(data) == last - first:
                self._keep(path, data)
        return data

    def _kept(self, path: Path, size: int) -> bytes | None:
        """The block in a file; None if it is missing or corrupt."""
        try:
            data = path.read_bytes()
            os.utime(path)  # marks it as just used
        except OSError:
            return None
        block, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
        return block if len(block) == size and zlib.crc32(block).to_bytes(CHECKSUM_BYTES, "big") == checksum else None

    def _keep(self, path: Path, data: bytes) -> None:
        """Writes a block after making room for it; does nothing without room or permission."""
        if not self._writable:
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked() as used:
                needed, counted = len(data) + CHECKSUM_BYTES, used.read_bytes()
                total = int(counted) + needed if counted else self.limit_bytes + 1  # a kill may have left it empty
                if total > self.limit_bytes:
                    total = self._make_room(needed)
                if total > self.limit_bytes:
                    return
                used.write_bytes(str(total).encode())
                temporary.write_bytes(data + zlib.crc32(data).to_bytes(CHECKSUM_BYTES, "big"))
                os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            self._writable = False
            log.warning("%s: stopped caching there (%s)", self.folder, error.strerror or error)

    def _make_room(self, needed: int) -> int:
        """Evicts the least recently used blocks; returns the bytes then in use, including `needed`."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = needed + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= max(self.limit_bytes * ROOM, needed):
                break
            if not path.endswith((".lock", ".bytes")):
                Path(path).unlink(missing_ok=True)
                total -= size
        return total

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Path]:
        """Locks the folder; yields the file that holds the number of bytes in use."""
        with open(self.folder / ".lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            used = self.folder / ".bytes"
            used.touch()
            yield used
