"""Reading remote files through fsspec so that a bad connection costs time, not the run.

A read that breaks is taken up again at the byte it reached, in smaller requests, with growing pauses; one that stalls
counts as broken.
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
from pipeline.shards import store

PIECE = 4 << 20  # one request of a remote read; halved while the connection keeps breaking
SMALLEST_PIECE = 16 << 10
ATTEMPTS = 6  # in a row without a single byte gained
BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 5.0
FATAL = FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError, TypeError, DataError


class RemoteFile:
    """A remote file read forwards, one piece ahead at most"""

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
        """Forwards by `size` bytes; what lies between is not fetched."""
        assert whence == os.SEEK_CUR
        self.position += max(size - len(self.buffer), 0)
        self.buffer = self.buffer[size:]

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.buffer = b""


def read_remote(url: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` (exclusive) of a remote file; fewer only if it ends before. See `store.read_range`."""
    fs, path = store.filesystem(url)
    data, piece, failures = bytearray(), PIECE, 0
    while start + len(data) < stop:
        position = start + len(data)
        wanted = min(piece, stop - position)
        try:
            got = _fetch(fs, path, position, position + wanted)
        except Exception as error:  # each store has errors of its own; nearly all of them pass
            if _past_the_end(error, fs, path, position):
                break
            failures += 1
            if isinstance(error, FATAL) or _refused(error) or store.lacks_credentials(error) or failures >= ATTEMPTS:
                raise store.unreadable(url, error) from None
            time.sleep(min(LONGEST_BACKOFF_S, BACKOFF_S * 2**failures) * random.uniform(0.5, 1))
            piece = max(SMALLEST_PIECE, piece // 2)
            continue
        if len(got) > wanted:
            raise DataError(f"{url}: the server ignores byte ranges; copy the shards to this machine or to a store")
        if not got:
            break
        failures = 0
        data += got
    return bytes(data)


def _fetch(fs: Any, path: str, start: int, stop: int) -> bytes:
    """One request. TimeoutError if the store does not answer within STALL_TIMEOUT_S, however patient it is itself."""
    if getattr(fs, "async_impl", False):
        from fsspec.asyn import sync

        return cast(bytes, sync(fs.loop, fs._cat_file, path, start=start, end=stop, timeout=store.STALL_TIMEOUT_S))
    answer: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(fs.cat_file(path, start=start, end=stop))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()  # one that hangs is left behind
    try:
        got = answer.get(timeout=store.STALL_TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {store.STALL_TIMEOUT_S:.0f} s") from None
    if isinstance(got, Exception):
        raise got
    return got


def _refused(error: Exception) -> bool:
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)


def _past_the_end(error: Exception, fs: Any, path: str, position: int) -> bool:
    """Stores answer a range that begins at the end of the file with an error rather than with no bytes."""
    if getattr(error, "status", None) != 416 and "range" not in str(error).lower():
        return False
    with contextlib.suppress(Exception):
        return bool(position >= fs.size(path))
    return False
