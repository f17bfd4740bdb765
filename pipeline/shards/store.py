"""Storage: local files directly, everything else through fsspec, with reads that survive a bad connection."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from pipeline.errors import DataError
from pipeline.shards.remote import RemoteFile, read_remote
from pipeline.shards.store_errors import unreadable, unwritable
from pipeline.shards.urls import (
    STALL_TIMEOUT_S,
    WITHOUT_LISTING,
    filesystem,
    is_local,
    join,
    local_path,
    protocol,
    refuse_commands,
)

HTTP_THREADS = 16
REQUESTS, BATCH = 32, 1024  # small files read at once, and asked for at once


def open_url(url: str) -> BinaryIO:
    """Opens a binary file for sequential reading; remote reads resume after a broken connection."""
    refuse_commands(url)
    if is_local(url):
        try:
            return open(local_path(url), "rb")
        except OSError as error:
            raise unreadable(url, error) from None
    return cast(BinaryIO, RemoteFile(url))


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` (exclusive) of a file; fewer only if it ends earlier.

    A failed remote read resumes at the byte it reached, in smaller requests, with exponential backoff.
    Raises DataError if the file is missing, unreadable, or yields no byte in ATTEMPTS attempts in a row.
    """
    refuse_commands(url)
    if not is_local(url):
        return read_remote(url, start, stop)
    try:
        with open(local_path(url), "rb", buffering=0) as file:
            file.seek(start)
            data = file.read(stop - start)
            while len(data) < stop - start and (more := file.read(stop - start - len(data))):
                data += more
            return data
    except OSError as error:
        raise unreadable(url, error) from None


def read_heads(names: Sequence[str], sizes: Sequence[int], folder: str) -> Iterator[bytes]:
    """The first `sizes` bytes of files in a folder, in order; of a remote one with many requests at once."""
    places, starts = [join(folder, name) for name in names], [0] * len(names)
    fs = None if is_local(folder) else filesystem(folder)[0]
    if fs is None:
        yield from map(read_range, places, starts, sizes)
    elif not getattr(fs, "async_impl", False):
        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(read_range, places, starts, sizes)
    else:
        for first in range(0, len(places), BATCH):
            asked = list(zip(places[first : first + BATCH], sizes[first : first + BATCH], strict=True))
            for (place, size), data in zip(asked, _read_at_once(fs, asked), strict=True):
                yield data if isinstance(data, bytes) else read_range(place, 0, size)  # which tries again, and says why


def _read_at_once(fs: Any, asked: Sequence[tuple[str, int]]) -> list[Any]:
    """Bytes or the exception of each request. Tasks of one event loop take a third of the CPU time of threads."""
    from fsspec.asyn import sync

    async def all_of_them() -> list[Any]:
        at_once = asyncio.Semaphore(REQUESTS)

        async def one(place: str, size: int) -> Any:
            async with at_once:
                return await asyncio.wait_for(fs._cat_file(place, start=0, end=size), STALL_TIMEOUT_S)

        return await asyncio.gather(*(one(*each) for each in asked), return_exceptions=True)

    return cast("list[Any]", sync(fs.loop, all_of_them))


def read_bytes(url: str) -> bytes:
    """Reads a small file, such as an index, whole. Raises DataError."""
    with open_url(url) as file:
        return file.read()


def write_bytes(url: str, data: bytes) -> None:
    """Writes a file atomically: readers see either the old one or the new one. Raises DataError."""
    refuse_commands(url)
    if not is_local(url):
        fs, path = filesystem(url)
        try:
            fs.pipe_file(path, data)
        except Exception as error:  # each store raises its own errors
            raise unwritable(url, error) from None
        return
    try:
        target = local_path(url)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(url, error) from None


def list_sizes(folder: str, candidates: Iterable[str] = ()) -> dict[str, tuple[int, int]]:
    """{name: (bytes, mtime in ns)} of the files in a folder; mtime is 0 for remote stores.

    HTTP cannot list folders: returns those of `candidates` that exist. A missing folder is empty. Raises DataError.
    """
    refuse_commands(folder)
    if is_local(folder):
        try:
            with os.scandir(local_path(folder) or ".") as entries:
                files = ((entry.name, entry.stat()) for entry in entries if entry.is_file())
                return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in files}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise unreadable(folder, error) from None
    fs, path = filesystem(folder)
    try:
        if protocol(folder) in WITHOUT_LISTING:
            names = list(candidates)
            with ThreadPoolExecutor(HTTP_THREADS) as pool:
                found_sizes = pool.map(lambda name: _size(fs, join(path, name)), names)
                return {name: (size, 0) for name, size in zip(names, found_sizes, strict=True) if size is not None}
        fs.invalidate_cache(path)
        listed = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:  # each store raises its own errors
        raise unreadable(folder, error) from None
    return {entry["name"].rsplit("/", 1)[-1]: (entry["size"], 0) for entry in listed if entry["type"] == "file"}


def file_size(url: str) -> int:
    """Size of a file in bytes. Raises DataError."""
    if is_local(url):
        try:
            return local_path(url).stat().st_size
        except OSError as error:
            raise unreadable(url, error) from None
    fs, path = filesystem(url)
    try:
        size = fs.size(path)
    except Exception as error:  # each store raises its own errors
        raise unreadable(url, error) from None
    if size is None:
        raise DataError(f"{url}: the server does not report its size; index it without --headers-only")
    return int(size)


def _size(fs: Any, path: str) -> int | None:
    try:
        return cast("int | None", fs.size(path))
    except FileNotFoundError:
        return None
