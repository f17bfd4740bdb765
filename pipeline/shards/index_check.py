"""Compares an index with the listing of its folder: what is missing, has changed, or was never indexed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.errors import DataError
from pipeline.shards import urls
from pipeline.shards.compressed import advice
from pipeline.shards.pattern import Pattern
from pipeline.shards.scan import ShardRecord
from pipeline.shards.sidecar import SUFFIX, index_remedy, sidecar_bytes

INDEX_NAME = "index.json"


def check_against(
    folder: str, records: Iterable[ShardRecord], listing: Mapping[str, tuple[int, int]], pattern: str
) -> None:
    """Compares the shards of an index with the files of its folder, by size alone.

    Raises DataError at the first mismatch.
    """
    remote_without_listing = urls.protocol(folder) in urls.WITHOUT_LISTING
    for record in records:
        url = urls.join(folder, record.name)
        if record.name not in listing:
            raise DataError(f"{url}: in the index, but not there; bring it back, or {index_remedy(pattern)}")
        found = listing[record.name][0]
        if found != record.bytes:
            expected = f"{record.bytes:,} bytes in the index"
            raise DataError(
                f"{url}: {found:,} bytes, but {expected}, so the index is not this tar's; {index_remedy(pattern)}"
            )
        if remote_without_listing:
            continue  # each sidecar is checked when it is read; checking all of them here would take a request each
        found = listing.get(record.name + SUFFIX, (-1, 0))[0]
        if found != sidecar_bytes(record.samples):
            fault = "missing" if found < 0 else f"{found:,} bytes instead of {sidecar_bytes(record.samples):,}"
            raise DataError(f"{url + SUFFIX}: {fault}; {index_remedy(pattern)}")


def no_index(pattern: Pattern, listing: Mapping[str, tuple[int, int]]) -> DataError:
    """The error for a pattern whose folder has no index."""
    if any(name.endswith(".tar") for name in pattern.select(listing)):
        return DataError(f"{pattern.folder}: holds shards but no {INDEX_NAME}; {index_remedy(pattern.text)}")
    return no_shards(pattern, listing)


def no_shards(pattern: Pattern, listing: Mapping[str, tuple[int, int]]) -> DataError:
    """The error for a pattern that matches no tar."""
    packed = pattern.select_packed(listing)
    if packed:
        return DataError(advice(pattern.folder, packed))
    return DataError(
        f"{pattern.text!r} matches no shards; correct the path, or write shards there with `minivit shards make`"
    )
