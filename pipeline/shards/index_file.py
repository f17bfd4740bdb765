"""The file `index.json` of a folder of shards: how it is written, read and compared with the folder.

It is columnar and read whole, even for hundreds of thousands of shards; the offsets of a shard's samples are in its
sidecar, which is read together with the shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import DataError, PipelineError
from pipeline.shards import store, urls
from pipeline.shards.index import HASH_DIGITS, LISTING, Columns, DatasetIndex, listing_hash
from pipeline.shards.index_check import INDEX_NAME, check_against, no_index
from pipeline.shards.members import DEFAULT_KEYS, extension
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.scan import columns_of
from pipeline.shards.sidecar import index_remedy
from pipeline.targets import Members, target_kind
from pipeline.targets.base import Merge

FORMAT, VERSION = "minivit-shards", 4
COLUMNS = "name", "samples", "bytes", "sha256"
OLDER = 2, 3  # versions that reindexing updates by reading only headers and labels


class OlderIndex(DataError):
    """An index in an older format; reindexing updates it by reading only headers and labels."""


def load_index(pattern: str, *, check: bool = True) -> DatasetIndex:
    """Loads the index of the shards that match a folder, tar, glob or brace pattern.

    `check` compares it with the folder's listing: sizes of tars and sidecars, and tars without an entry. One process of
    a job is enough for that; without `check`, only the index file is read, whatever the number of shards.
    Raises DataError if nothing matches, or if the index is missing or does not match its tars.
    """
    parsed = parse_pattern(pattern)
    url = urls.join(parsed.folder, INDEX_NAME)
    try:
        data = store.read_bytes(url)
    except DataError:
        listing = store.list_sizes(parsed.folder, [INDEX_NAME, *parsed.literals])
        if INDEX_NAME in listing:
            raise
        raise no_index(parsed, listing) from None
    listing = store.list_sizes(parsed.folder, parsed.literals) if check else {}
    index = decode_index(data, parsed.folder)
    names = parsed.select(index.names)
    present = [name for name in parsed.select(listing) if name.endswith(".tar")]
    known = set(names)
    unknown = [name for name in present if name not in known]
    if unknown:
        raise DataError(
            f"{urls.join(parsed.folder, unknown[0])}: missing from {url}{_others(unknown)}; {index_remedy(pattern)}"
        )
    absent = [name for name in parsed.literals if name not in known]
    if absent:
        raise DataError(f"{pattern!r}: {parsed.folder} lacks {absent[0]}{_others(absent)}; correct the pattern")
    if not names:
        raise DataError(f"{pattern!r} matches none of the {len(index.names)} shards in {url}; correct the pattern")
    index = index.select(names)
    if check:
        shards = zip(index.names, index.sizes.tolist(), index.counts.tolist(), strict=True)
        check_against(index.url, shards, listing, pattern, sidecars=index.hash_of != LISTING)
    return index


def encode_index(index: DatasetIndex) -> bytes:
    hashes = "" if index.hash_of == LISTING else index.sha256
    document = {
        "format": FORMAT,
        "version": VERSION,
        "image_key": index.keys.image_key,
        "classes": index.classes,
        "hash_of": index.hash_of,
        "num_shards": len(index.names),
        "num_samples": index.num_samples,
        "num_bytes": int(index.sizes.sum()),
        "shards": dict(zip(COLUMNS, (index.names, index.counts.tolist(), index.sizes.tolist(), hashes), strict=True)),
        "without_image": index.without_image,
        "targets": {
            kind: {"members": members, "columns": _sparse(index.columns.get(kind, {}), columns_of(target_kind(kind)))}
            for kind, members in index.members.items()
        },
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def decode_index(data: bytes, folder: str, *, older: bool = False) -> DatasetIndex:
    """Decodes the index of all shards of a folder. Raises DataError if it is not one.

    With `older`, older formats are accepted too, but only their shards, keys, classes and the member of their label are
    read.
    """
    url = urls.join(folder, INDEX_NAME)
    try:
        document = json.loads(data)
        version = document["version"]
        if document["format"] != FORMAT or version not in (*OLDER, VERSION):
            raise ValueError(f"format {document['format']!r} version {version!r}")
        names, counts, sizes, hashes = (document["shards"][column] for column in COLUMNS)
        if document["hash_of"] == LISTING:
            hashes = "".join(map(listing_hash, names, counts, sizes))
        lengths = {len(names), len(counts), len(sizes), document["num_shards"]}
        if len(lengths) != 1 or len(hashes) != HASH_DIGITS * len(names):
            raise ValueError("columns of different lengths")
        joined = "\0".join(names) + "\0" if names else ""
        if "/" in joined or not joined.count(".tar\0") == joined.count("\0") == len(names):
            raise ValueError("a name of a shard that is not a tar in this folder")
        read = _read_older if version in OLDER else _read_targets
        keys = DEFAULT_KEYS.override(document.get("image_key"))
        classes, members, without_image, summed_up = read(document)
        columns = names, _column(counts), _column(sizes), hashes, without_image, summed_up
        index = DatasetIndex(folder, classes, keys, members, *columns, hash_of=document["hash_of"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, PipelineError) as error:
        raise DataError(f"{url}: not an index of format {VERSION} ({error!r}); {index_remedy(folder)}") from None
    if version != VERSION and not older:
        raise OlderIndex(
            f"{url}: has format {version}, which only supports class numbers as labels; {index_remedy(folder)} to "
            f"update it to format {VERSION}"
        )
    return index


Read = tuple[dict[str, list[str]], Members, dict[int, int], dict[str, Columns]]


def _read_targets(document: dict[str, Any]) -> Read:
    """Classes, members, samples without image and columns."""
    shards = document["num_shards"]
    without_image = {int(i): int(count) for i, count in document["without_image"].items()}
    if any(not 0 <= i < shards or count < 0 for i, count in without_image.items()):
        raise ValueError("impossible counts of samples without an image")
    members, columns = {}, {}
    for kind, target in document["targets"].items():
        members[kind] = tuple(extension(one, one) for one in target["members"])
        if document["hash_of"] != LISTING:
            columns[kind] = _dense(target["columns"], columns_of(target_kind(kind)), shards)
    return document["classes"], members, without_image, columns


def _read_older(document: dict[str, Any]) -> Read:
    """Like `_read_targets`, for formats with a single label; its counts are ignored."""
    names = document["classes"]
    member = extension(document["label_key"], document["label_key"])
    return {} if names is None else {"class_id": names}, {"class_id": (member,)}, {}, {}


def _sparse(columns: Columns, rules: Mapping[str, Merge]) -> dict[str, Any]:
    """Columns as stored in the file: counts, which are rarely above 0, by position of the shard."""
    return {
        name: {i: value for i, value in enumerate(columns[name]) if value} if rule == "sum" else columns[name]
        for name, rule in rules.items()
        if columns
    }


def _dense(columns: dict[str, Any], rules: Mapping[str, Merge], shards: int) -> Columns:
    """The inverse of `_sparse`. Raises ValueError for impossible columns."""
    found = {}
    for name, rule in rules.items():
        values = columns[name]
        if rule == "sum":
            values = {int(i): int(count) for i, count in values.items()}
            if any(not 0 <= i < shards or count < 0 for i, count in values.items()):
                raise ValueError(f"impossible counts of {name} samples")
            values = [values.get(i, 0) for i in range(shards)]
        if len(values) != shards:
            raise ValueError("columns of different lengths")
        found[name] = values
    return found


def _column(values: list[Any]) -> np.ndarray:
    column = np.array(values, np.int64)
    if column.ndim != 1 or (column.size and column.min() < 0):
        raise ValueError("a negative count")
    return column


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
