"""Where shards are: local paths, and URLs that fsspec opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from pipeline.errors import DataError

STALL_TIMEOUT_S = 30.0  # for a silent connection, and for one request of a piece
WITHOUT_LISTING = "http", "https"


def is_local(url: str) -> bool:
    return url.startswith(("file://", "/", "./", "../")) or ("://" not in url and "::" not in url)


def local_path(url: str) -> Path:
    return Path(url.removeprefix("file://"))


def protocol(url: str) -> str:
    return "file" if is_local(url) else url.split("://", 1)[0].split("::", 1)[0]


def refuse_commands(url: str) -> str:
    """The URL itself, unless it would run a program. Raises DataError."""
    if url.lstrip().startswith("pipe:"):
        raise DataError(f"{url!r}: 'pipe:' runs programs and is refused; give the shards as a path or an fsspec URL")
    return url


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if folder else name


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Raises DataError for an unknown or uninstalled protocol."""
    from fsspec.core import url_to_fs

    refuse_commands(url)
    options: dict[str, Any] = {}
    if protocol(url) in WITHOUT_LISTING:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_TIMEOUT_S, sock_read=STALL_TIMEOUT_S)
        options["client_kwargs"] = {"timeout": timeout}
    if protocol(url) == "s3":
        # Some stores answer a range with the checksum of the whole object; shards have their own hashes.
        options["config_kwargs"] = {"response_checksum_validation": "when_required"}
    try:
        return cast("tuple[Any, str]", url_to_fs(url, **options))
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: fsspec cannot open '{protocol(url)}:' URLs here ({error})") from None
