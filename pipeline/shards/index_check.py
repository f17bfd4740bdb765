"""Compares an index with its folder's listing, and explains a missing index or missing shards."""

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
    """Compares the shards of an index with the files in its folder, by size only.

    Raises DataError at the first mismatch.
    """
    remote_without_listing = urls.protocol(folder) in urls.WITHOUT_LISTING
    for record in records:
        url = urls.join(folder, record.name)
        if record.name not in listing:
            raise DataError(f"{url}: missing, but listed in the index; restore it, or {index_remedy(pattern)}")
        found = listing[record.name][0]
        if found != record.bytes:
            raise DataError(
                f"{url}: found {found:,} bytes, but the index says {record.bytes:,}, so the tar has changed since it "
                f"was indexed; {index_remedy(pattern)}"
            )
        if remote_without_listing:
            continue  # sidecars are checked when they are read; here, each would cost a request
        found = listing.get(record.name + SUFFIX, (-1, 0))[0]
        if found != sidecar_bytes(record.samples):
            fault = "missing" if found < 0 else f"found {found:,} bytes, expected {sidecar_bytes(record.samples):,}"
            raise DataError(f"{url + SUFFIX}: {fault}; {index_remedy(pattern)}")


def no_index(pattern: Pattern, listing: Mapping[str, tuple[int, int]]) -> DataError:
    """The error for a pattern whose folder has no index."""
    if any(name.endswith(".tar") for name in pattern.select(listing)):
        return DataError(f"{pattern.folder}: has shards but no {INDEX_NAME}; {index_remedy(pattern.text)}")
    return no_shards(pattern, listing)


def no_shards(pattern: Pattern, listing: Mapping[str, tuple[int, int]]) -> DataError:
    """The error for a pattern that matches no tar."""
    packed = pattern.select_packed(listing)
    if packed:
        return DataError(advice(pattern.folder, packed))
    return DataError(
        f"{pattern.text!r}: found no shards; correct the path, or write shards there with `minivit shards make`"
    )
