"""Reads remote files through fsspec so that a bad connection costs time, not the run.

A failed read resumes at the byte it reached, in smaller requests, with exponential backoff; a stalled read counts as
failed. obstore would halve the CPU time, which is little beside decoding, but has fewer stores than fsspec.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import threading
import time
from typing import Any, cast

from pipeline.errors import DataError
from pipeline.shards import urls
from pipeline.shards.store_errors import lacks_credentials, unreadable

PIECE = 4 << 20  # bytes per request of a remote read; halved at each failure
SMALLEST_PIECE = 16 << 10
ATTEMPTS = 6  # in a row without receiving a byte
BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0
FATAL = FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError, TypeError, DataError


class RemoteFile:
    """A remote file read sequentially, at most one piece ahead."""

    def __init__(self, url: str, piece: int = PIECE):
        self.url, self.piece, self.position, self.buffer = url, piece, 0, b""

    def read(self, size: int = -1) -> bytes:
        parts = []
        while size != 0:
            if not self.buffer:
                self.buffer = read_remote(self.url, self.position, self.position + self.piece)
                self.position += len(self.buffer)
                if not self.buffer:
                    break
            part = self.buffer if size < 0 else self.buffer[:size]
            self.buffer = self.buffer[len(part) :]
            size -= len(part) if size > 0 else 0
            parts.append(part)
        return b"".join(parts)

    def seek(self, size: int, whence: int) -> None:
        """Skips `size` bytes forwards without fetching them."""
        assert whence == os.SEEK_CUR
        self.position += max(size - len(self.buffer), 0)
        self.buffer = self.buffer[size:]

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.buffer = b""


def read_remote(url: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` (exclusive) of a remote file; fewer only if it ends earlier. See `store.read_range`."""
    fs, path = urls.filesystem(url)
    data, piece, failures = bytearray(), PIECE, 0
    while start + len(data) < stop:
        position = start + len(data)
        wanted = min(piece, stop - position)
        try:
            got = _fetch(fs, path, position, position + wanted)
        except Exception as error:  # each store raises its own errors; nearly all are transient
            if _past_the_end(error, fs, path, position):
                break
            failures += 1
            if isinstance(error, FATAL) or _refused(error) or lacks_credentials(error) or failures >= ATTEMPTS:
                raise unreadable(url, error) from None
            time.sleep(min(LONGEST_BACKOFF_S, BACKOFF_S * 2**failures) * random.uniform(0.5, 1))
            piece = max(SMALLEST_PIECE, piece // 2)
            continue
        if len(got) > wanted:
            raise DataError(
                f"{url}: the server does not support byte ranges; copy the shards to this machine or to a store"
            )
        if not got:
            break
        failures = 0
        data += got
    return bytes(data)


def _fetch(fs: Any, path: str, start: int, stop: int) -> bytes:
    """Sends one request. TimeoutError if no answer arrives within STALL_TIMEOUT_S, whatever the store's own timeout."""
    if getattr(fs, "async_impl", False):
        from fsspec.asyn import sync

        return cast(bytes, sync(fs.loop, fs._cat_file, path, start=start, end=stop, timeout=urls.STALL_TIMEOUT_S))
    answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(fs.cat_file(path, start=start, end=stop))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()  # a hung thread is abandoned
    try:
        got = answer.get(timeout=urls.STALL_TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {urls.STALL_TIMEOUT_S:.0f} s") from None
    if isinstance(got, Exception):
        raise got
    return got


def _refused(error: Exception) -> bool:
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)


def _past_the_end(error: Exception, fs: Any, path: str, position: int) -> bool:
    """Whether a range begins past the end of the file, which makes stores raise instead of returning no bytes."""
    if getattr(error, "status", None) != 416 and "range" not in str(error).lower():
        return False
    with contextlib.suppress(Exception):
        return bool(position >= fs.size(path))
    return False
