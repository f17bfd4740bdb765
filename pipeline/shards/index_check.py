"""Compares an index with its folder's listing, and explains a missing index or missing shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.errors import DataError
from pipeline.shards import urls
from pipeline.shards.compressed import advice
from pipeline.shards.pattern import Pattern
from pipeline.shards.sidecar import SUFFIX, index_remedy, sidecar_bytes

INDEX_NAME = "index.json"


def check_against(
    folder: str,
    shards: Iterable[tuple[str, int, int]],
    listing: Mapping[str, tuple[int, int]],
    pattern: str,
    *,
    sidecars: bool,
) -> None:
    """Compares the (name, bytes, samples) of an index's shards, and if wanted their sidecars, with a listing's sizes.

    Raises DataError at the first mismatch.
    """
    listed = urls.protocol(folder) not in urls.WITHOUT_LISTING
    for name, size, samples in shards:
        url = urls.join(folder, name)
        if name not in listing:
            raise DataError(f"{url}: missing, but listed in the index; restore it, or {index_remedy(pattern)}")
        found = listing[name][0]
        if found != size:
            raise DataError(
                f"{url}: found {found:,} bytes, but the index says {size:,}, so the tar has changed since it "
                f"was indexed; {index_remedy(pattern)}"
            )
        if not sidecars or not listed:
            continue  # sidecars are checked when they are read; here, each would cost a request
        found = listing.get(name + SUFFIX, (-1, 0))[0]
        if found != sidecar_bytes(samples):
            fault = "missing" if found < 0 else f"found {found:,} bytes, expected {sidecar_bytes(samples):,}"
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
