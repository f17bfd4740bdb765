"""Numbers of samples in shards, from files that other tools wrote with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from pipeline.errors import DataError
from pipeline.shards import store, urls
from pipeline.shards.index_check import INDEX_NAME
from pipeline.shards.parallel import track

Listing = Mapping[str, tuple[int, int]]  # name: (bytes, mtime in ns)

STATS = "_stats.json"
ENERGON_FOLDER, ENERGON_FILES = ".nv-meta", (".info.json", ".info.yaml")


def read_counts(folder: str, names: Sequence[str], listing: Listing) -> dict[str, int]:
    """The number of samples of each shard, by name.

    From the first of these that exists: Megatron-Energon's `.nv-meta/.info.json`, a wids index (a JSON file with a
    `shardlist`), img2dataset's `<shard>_stats.json`. Raises DataError if there is none, or it lacks a shard.
    """
    for read in (_of_energon, _of_wids, _of_img2dataset):
        source, counts = read(folder, names, listing)
        if not counts:
            continue
        lacking = [name for name in names if name not in counts]
        if lacking:
            raise DataError(
                f"{source}: has no count of {lacking[0]} (and {len(lacking) - 1:,} more); index the shards without "
                "--counts, or write the counts again"
            )
        wrong = next((name for name in names if type(counts[name]) is not int or counts[name] < 0), None)
        if wrong is not None:
            raise DataError(f"{source}: found {counts[wrong]!r} as the count of {wrong}, expected a number of samples")
        return {name: counts[name] for name in names}
    raise DataError(
        f"{folder}: found no counts of its shards ({ENERGON_FOLDER}/{ENERGON_FILES[0]} of Megatron-Energon, a wids "
        f"index, or img2dataset's files *{STATS}); index them without --counts, which reads each once"
    )


Found = tuple[str, dict[str, Any]]  # where counts were found, and the counts by the shard's name


def _of_energon(folder: str, names: Sequence[str], listing: Listing) -> Found:
    inside = urls.join(folder, ENERGON_FOLDER)
    there = store.list_sizes(inside, ENERGON_FILES)
    for name in ENERGON_FILES:
        if name in there:
            url = urls.join(inside, name)
            return url, _parse(url, store.read_bytes(url), lambda found: dict(found["shard_counts"]))
    return inside, {}


def _of_wids(folder: str, names: Sequence[str], listing: Listing) -> Found:
    for name in sorted(listing):
        if not name.endswith(".json") or name.endswith(STATS) or name == INDEX_NAME:
            continue
        if f"{name.removesuffix('.json')}.tar" in listing:  # a file per shard
            continue
        url = urls.join(folder, name)
        data = store.read_bytes(url)
        if b'"shardlist"' in data:
            return url, _parse(url, data, _of_shardlist)
    return folder, {}


def _of_shardlist(found: Any) -> dict[str, Any]:
    return {shard["url"].rsplit("/", 1)[-1]: shard["nsamples"] for shard in found["shardlist"]}


def _of_img2dataset(folder: str, names: Sequence[str], listing: Listing) -> Found:
    files = {name: f"{name.removesuffix('.tar')}{STATS}" for name in names}
    there = {name: file for name, file in files.items() if file in listing}
    read = store.read_heads(list(there.values()), [listing[file][0] for file in there.values()], folder)
    counts = {
        name: _parse(urls.join(folder, file), data, lambda found: {"": found["successes"]})[""]
        for (name, file), data in zip(there.items(), track(read, len(there), "counting", "shards"), strict=True)
    }
    return urls.join(folder, f"*{STATS}"), counts


def _parse(url: str, data: bytes, pick: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """What `pick` selects in a JSON or YAML file. Raises DataError if it is missing."""
    try:
        return pick(yaml.safe_load(data) if url.endswith(".yaml") else json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{url}: found no counts of samples in it ({error!r}); index without --counts") from None
