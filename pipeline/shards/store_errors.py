"""Errors of storage as DataErrors that say how to fix them."""

from __future__ import annotations

import errno
from pathlib import Path

from pipeline.errors import DataError


def unreadable(url: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, FileNotFoundError):
        return DataError(f"{url}: no such file; check the path and, for a remote store, its name and credentials")
    if isinstance(error, PermissionError) or lacks_credentials(error):
        return DataError(
            f"{url}: cannot be read ({_reason(error)}); check its permissions and, for a remote store, the credentials"
        )
    return DataError(f"{url}: cannot be read ({_reason(error)})")


def unwritable(url: str | Path, error: BaseException) -> DataError:
    """The error for a file that could not be written, with advice that fits the cause."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space or choose another place" if full else "choose a writable place"
    return DataError(f"{url}: cannot be written ({_reason(error)}); {remedy}")


def lacks_credentials(error: BaseException) -> bool:
    """Whether credentials are missing; the libraries share no exception class for it."""
    return "Credentials" in type(error).__name__


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
