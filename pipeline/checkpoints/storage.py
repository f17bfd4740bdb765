"""Where checkpoints are stored: a folder of a local or shared file system, or a prefix of an object store such as S3.

Paths are relative to the root and use '/'. Writes are durable once the call, or the context, has ended: files and
folders are synced, objects exist once the store has answered.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from pipeline.errors import CheckpointError
from pipeline.files import sync, takes_no_files, write_whole
from pipeline.shards.store import read_range
from pipeline.shards.urls import filesystem, is_local, local_path

PROBE = "write-test"  # a temporary small file
LOCKED_BY = "manifest.json"  # a checkpoint's readers hold a shared lock on it
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
ALMOST_FULL_BYTES = 1 << 20


class Storage(Protocol):
    """What checkpoints require from their storage."""

    root: str

    def url(self, path: str) -> str:
        """The full address of a path, for people and for readers of byte ranges."""

    def folders(self) -> list[str]:
        """Sorted names of the folders directly below the root; empty if the root does not exist."""

    def files(self, folder: str) -> dict[str, int]:
        """Path relative to the root -> size in bytes, for all files directly in a folder."""

    def create(self, path: str) -> Any:
        """Context manager for writing a binary file from its start; durable on exit without an exception."""

    def put(self, path: str, data: bytes) -> None:
        """Write a small file atomically: readers see the old one or the new one."""

    def open(self, path: str) -> BinaryIO:
        """Open a binary file to read forwards. Raises FileNotFoundError."""

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        """Fill a buffer with bytes from position `start` on. Raises DataError or OSError, EOFError if the file ends."""

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""

    def remove_folder(self, folder: str) -> bool:
        """Remove a checkpoint, manifest first, so that no partial one looks committed; False if a reader holds it."""

    def reading(self, folder: str) -> Any:
        """Context manager that protects a checkpoint from `remove_folder`."""

    def free_bytes(self) -> int | None:
        """Free space in bytes, None if unlimited."""

    def refuses(self) -> str | None:
        """Why nothing can be written here, judged without writing; None if it apparently can."""


def open_storage(url: str | Path) -> Storage:
    """The storage at a path or an fsspec URL. Raises DataError for a URL that fsspec cannot open."""
    url = str(url)
    return LocalStorage(local_path(url)) if is_local(url) else ObjectStorage(url)


class LocalStorage:
    """A folder; on a shared file system all ranks see the same content."""

    def __init__(self, root: Path) -> None:
        self.path, self.root = root, str(root)

    def url(self, path: str) -> str:
        return str(self.path / path)

    def folders(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir()) if self.path.is_dir() else []

    def files(self, folder: str) -> dict[str, int]:
        entries = (self.path / folder).iterdir() if (self.path / folder).is_dir() else []
        return {f"{folder}/{entry.name}": entry.stat().st_size for entry in entries if entry.is_file()}

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            yield file
        sync(target)
        sync(target.parent)

    def put(self, path: str, data: bytes) -> None:
        write_whole(self.path / path, lambda draft: draft.write_bytes(data))

    def open(self, path: str) -> BinaryIO:
        return (self.path / path).open("rb")

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        with (self.path / path).open("rb", buffering=0) as file:
            file.seek(start)
            filled = 0
            while filled < len(buffer):
                got = file.readinto(buffer[filled:])
                if not got:
                    raise EOFError(f"{self.url(path)} ends at byte {start + filled}")
                filled += got

    def remove(self, path: str) -> None:
        (self.path / path).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> bool:
        manifest = self.path / folder / LOCKED_BY
        with suppress(FileNotFoundError), manifest.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            manifest.unlink()
            sync(manifest.parent)
        shutil.rmtree(self.path / folder, ignore_errors=True)
        return True

    @contextmanager
    def reading(self, folder: str) -> Iterator[None]:
        try:
            file = (self.path / folder / LOCKED_BY).open("rb")
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.url(folder)} no longer exists: retention has removed it in the meantime"
            ) from None
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def free_bytes(self) -> int | None:
        place = self.path
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def refuses(self) -> str | None:
        return takes_no_files(self.path / PROBE)


class ObjectStorage:
    """A prefix of an object store that fsspec supports. It has no locks; a manifest is one object, written last."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._fs, self._prefix = filesystem(self.root)

    def url(self, path: str) -> str:
        return f"{self.root}/{path}"

    def folders(self) -> list[str]:
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in self._list("") if entry["type"] == "directory")

    def files(self, folder: str) -> dict[str, int]:
        entries = [entry for entry in self._list(folder) if entry["type"] == "file"]
        return {f"{folder}/{entry['name'].rsplit('/', 1)[-1]}": entry["size"] for entry in entries}

    def _list(self, folder: str) -> list[dict[str, Any]]:
        path = self._path(folder)
        self._fs.invalidate_cache()
        try:
            return list(self._fs.ls(path, detail=True))
        except FileNotFoundError:
            return []

    def _path(self, path: str) -> str:
        return f"{self._prefix}/{path}".rstrip("/")

    @contextmanager
    def create(self, path: str) -> Iterator[BinaryIO]:
        file = self._fs.open(self._path(path), "wb")
        try:
            yield file
        except BaseException:
            file.discard()
            with suppress(AttributeError):
                file.closed = True  # otherwise fsspec uploads the partial file when it is garbage-collected
            raise
        file.close()

    def put(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(self._path(path), data)

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, self._fs.open(self._path(path), "rb"))

    def read_into(self, path: str, start: int, buffer: memoryview) -> None:
        data = read_range(self.url(path), start, start + len(buffer))
        if len(data) < len(buffer):
            raise EOFError(f"{self.url(path)} ends at byte {start + len(data)}")
        buffer[:] = data

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(path))

    def remove_folder(self, folder: str) -> bool:
        self.remove(f"{folder}/{LOCKED_BY}")
        with suppress(FileNotFoundError):
            self._fs.rm(self._path(folder), recursive=True)
        return True

    @contextmanager
    def reading(self, folder: str) -> Iterator[None]:
        yield

    def free_bytes(self) -> int | None:
        return None

    def refuses(self) -> str | None:
        return None  # only a write can tell


def try_to_write(storage: Storage) -> str | None:
    """Write and remove a small file; returns why that failed, or None."""
    try:
        storage.put(PROBE, b"")
        storage.remove(PROBE)
    except Exception as error:  # each store has its own errors
        return str(error) or type(error).__name__
    return None


def storage_error(storage: Storage, error: BaseException) -> CheckpointError | None:
    """The error for a full disk or a store that refuses writes, with a remedy; None if `error` has another cause."""
    with suppress(OSError):  # even asking may be refused
        free = storage.free_bytes()
        if free is not None and free < ALMOST_FULL_BYTES:
            return _unwritable(storage, "the disk is full", "make room")
    if not isinstance(error, OSError) or (isinstance(storage, LocalStorage) and error.errno not in UNWRITABLE):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _unwritable(storage, "the disk is full", "make room")
    return _unwritable(storage, str(error) or type(error).__name__, "correct the permissions or the address")


@contextmanager
def explain_unwritable(folder: Path) -> Iterator[None]:
    """Turn the error of a full or refusing disk, anywhere below a folder, into one sentence."""
    try:
        yield
    except OSError as error:
        raise storage_error(LocalStorage(folder), error) or error from error


def _unwritable(storage: Storage, reason: str, remedy: str) -> CheckpointError:
    return CheckpointError(
        f"{storage.root} cannot be written ({reason}); {remedy} and run the same command again: "
        "it resumes from the last committed checkpoint"
    )
