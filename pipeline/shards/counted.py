"""Builds indexes of shards without reading them, from the numbers of samples that other tools counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import DataError
from pipeline.shards import store, urls
from pipeline.shards.build import by_kind, chosen_shards, earlier_index, find_members, folder_lock, write_index
from pipeline.shards.counts import read_counts
from pipeline.shards.index import LISTING, DatasetIndex, listing_hash, make_index
from pipeline.shards.index_check import INDEX_NAME
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.scan import ShardRecord
from pipeline.targets import Members


def index_by_counts(
    pattern: str,
    *,
    classes: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    image_key: str | None = None,
    targets: Members | None = None,
) -> DatasetIndex:
    """Indexes the shards that match a pattern by their names, bytes and counts; returns the index of exactly these.

    Only reads the first samples of one tar, for the names of members; the offsets of samples are recorded when a shard
    is first read. Members and classes are chosen as in `build_index`. Raises DataError if nothing matches, counts are
    missing (see `read_counts`), or there already is an index by content, which has more information.
    """
    parsed = parse_pattern(pattern)
    with folder_lock(parsed.folder, "index"):
        listing = store.list_sizes(parsed.folder, [INDEX_NAME, *parsed.literals])
        names = chosen_shards(parsed, listing)
        earlier = earlier_index(parsed.folder, listing)
        if earlier.names and earlier.hash_of != LISTING:
            raise DataError(
                f"{urls.join(parsed.folder, INDEX_NAME)}: already describes these shards by their content, not only "
                f"by their counts; add new shards to it with `minivit shards index '{pattern}'`"
            )
        counts = read_counts(parsed.folder, names, listing)
        known = {record.name: record for record in earlier.records() if record.name in listing}
        new = [urls.join(parsed.folder, name) for name in names if name not in known]
        keys, members = find_members(earlier, image_key, targets, new)
        rows = known | {name: _record(name, counts[name], listing[name][0]) for name in names}
        named = {**earlier.classes, **by_kind(classes, members)}
        ordered = [rows[name] for name in sorted(rows)]
        index = make_index(parsed.folder, ordered, named, keys, members, hash_of=LISTING)
        write_index(index)
    return index.select(names)


def _record(name: str, samples: int, size: int) -> ShardRecord:
    return ShardRecord(name, samples, size, listing_hash(name, samples, size))
