"""The index of a folder of shards: each tar's number of samples, size, hash and target summaries.

An index by LISTING only has the numbers of samples, which other tools have counted, and the bytes.

`index.json` is columnar, so that even hundreds of thousands of shards can be read at once. The offsets of a shard's
samples are in its sidecar, which is read with the shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from pipeline.config.class_names import normalise_class_name
from pipeline.errors import DataError, PipelineError
from pipeline.shards import store, urls
from pipeline.shards.cache import RangeCache
from pipeline.shards.first_read import first_offsets
from pipeline.shards.index_check import INDEX_NAME, check_against, no_index
from pipeline.shards.members import DEFAULT_KEYS, Keys, extension
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.scan import ShardRecord, columns_of
from pipeline.shards.sidecar import SUFFIX, index_remedy, parse_sidecar, read_sidecar, sidecar_bytes
from pipeline.targets import Members, target_kind
from pipeline.targets.base import Merge, Summary, total

FORMAT, VERSION = "minivit-shards", 4
COLUMNS = "name", "samples", "bytes", "sha256"
OLDER = 2, 3  # versions that reindexing updates by reading only headers and labels
# What a shard's SHA-256 is of: the whole tar, its headers and labels, or its name, bytes and number of samples alone.
CONTENT, HEADERS, LISTING = "content", "headers", "listing"
HASH_DIGITS = 64  # of a SHA-256
DIGEST_CHARACTERS = 32  # MLflow takes up to 36


Columns = Mapping[str, list[int | None]]  # a value per shard


class OlderIndex(DataError):
    """An index in an older format; reindexing updates it by reading only headers and labels."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar: its URL, its number of samples and bytes, and the SHA-256 of what the index says.

    `scanned`: its sidecar was written with the index; otherwise it is written when the shard is first read.
    """

    url: str
    samples: int
    bytes: int
    sha256: str
    scanned: bool = True

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The shards that a pattern selects in a folder, as columns."""

    url: str  # of the folder
    classes: Mapping[str, list[str]]  # by kind of target
    keys: Keys  # the image members that count for `without_image`
    members: Members  # of the kinds of targets in `columns`
    names: list[str]
    counts: np.ndarray  # int64 [num_shards], samples in each
    sizes: np.ndarray  # int64 [num_shards], bytes of each
    sha256: str  # HASH_DIGITS per shard, concatenated: a list would be slow to load and twice as large
    without_image: Mapping[int, int]  # number of samples, by position of the shard; 0 if absent
    columns: Mapping[str, Columns]  # summaries of each shard's samples, by kind of target
    hash_of: str = CONTENT  # CONTENT, HEADERS or LISTING; the last knows nothing of images and labels

    def __post_init__(self) -> None:
        classes = {kind: [normalise_class_name(name) for name in names] for kind, names in self.classes.items()}
        object.__setattr__(self, "classes", classes)

    @property
    def shards(self) -> Sequence[ShardInfo]:
        return _Shards(self)

    @property
    def num_samples(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def totals(self) -> dict[str, Summary]:
        """The summary of all samples, per kind of target."""
        return {kind: total(columns, columns_of(target_kind(kind))) for kind, columns in self.columns.items()}

    def summary(self, kind: str, i: int) -> Summary:
        """The summary of a shard's samples."""
        return {name: values[i] for name, values in self.columns[kind].items()}

    @cached_property
    def digest(self) -> str:
        """Identifies the content: a hexadecimal hash of the shards' names, hashes and sample counts, in this order."""
        counts = map(str, self.counts.tolist())
        rows = map(" ".join, zip(self.names, self._hashes(), counts, strict=True))
        return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()[:DIGEST_CHARACTERS]

    def records(self) -> list[ShardRecord]:
        counts, sizes = self.counts.tolist(), self.sizes.tolist()
        images = [self.without_image.get(i, 0) for i in range(len(self.names))]
        targets = [{kind: self.summary(kind, i) for kind in self.columns} for i in range(len(self.names))]
        columns = self.names, counts, sizes, self._hashes(), images, targets
        return [ShardRecord(*row) for row in zip(*columns, strict=True)]

    def shard_hash(self, i: int) -> str:
        """SHA-256 of a shard, hexadecimal."""
        return self.sha256[i * HASH_DIGITS : (i + 1) * HASH_DIGITS]

    def _hashes(self) -> list[str]:
        return [self.shard_hash(i) for i in range(len(self.names))]

    def select(self, names: Sequence[str]) -> DatasetIndex:
        """The index of only these shards, in this order."""
        if names == self.names:
            return self
        rows = dict(zip(self.names, self.records(), strict=True))
        chosen = [rows[name] for name in names]
        return make_index(self.url, chosen, self.classes, self.keys, self.members, hash_of=self.hash_of)


class _Shards(Sequence[ShardInfo]):
    """The shards of an index, created on access, because a list of them would take more memory than the index."""

    def __init__(self, index: DatasetIndex):
        self.of = index

    def __len__(self) -> int:
        return len(self.of.names)

    @overload
    def __getitem__(self, i: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, i: slice) -> list[ShardInfo]: ...
    def __getitem__(self, i: int | slice) -> ShardInfo | list[ShardInfo]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        index = self.of
        url = urls.join(index.url, index.names[i])
        counted = int(index.counts[i]), int(index.sizes[i])
        return ShardInfo(url, *counted, index.shard_hash(i), index.hash_of != LISTING)


def make_index(
    url: str,
    records: Sequence[ShardRecord],
    classes: Mapping[str, Sequence[str]] | None = None,
    keys: Keys = DEFAULT_KEYS,
    members: Members | None = None,
    *,
    hash_of: str = CONTENT,
) -> DatasetIndex:
    """Makes an index from its rows, which summarise the kinds of targets in `members`, unless by LISTING."""
    return DatasetIndex(
        url,
        {kind: list(names) for kind, names in (classes or {}).items()},
        keys,
        members or {},
        names=[record.name for record in records],
        counts=np.array([record.samples for record in records], np.int64),
        sizes=np.array([record.bytes for record in records], np.int64),
        sha256="".join(record.sha256 for record in records),
        without_image={i: record.without_image for i, record in enumerate(records) if record.without_image},
        columns={
            kind: {name: [record.targets[kind][name] for record in records] for name in columns_of(target_kind(kind))}
            for kind in (members or {} if hash_of != LISTING else {})
        },
        hash_of=hash_of,
    )


def listing_hash(name: str, samples: int, size: int) -> str:
    """Stands for the hash of a shard that has not been read."""
    return hashlib.sha256(f"{name}\0{samples}\0{size}".encode("utf-8", "surrogateescape")).hexdigest()


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


def load_offsets(shard: ShardInfo, cache: RangeCache | None = None) -> np.ndarray:
    """uint64 [samples + 1]: sample i is bytes offsets[i] to offsets[i + 1] of the tar, whole members with headers.

    A shard that was indexed by its count is scanned the first time. Raises DataError if the sidecar is missing or
    damaged, or belongs to another tar, or if the shard is not what its count says.
    """
    try:
        return _indexed_offsets(shard, cache)
    except DataError:
        if shard.scanned:
            raise
    return first_offsets(shard.url, shard.samples, shard.bytes, shard.sha256)


def _indexed_offsets(shard: ShardInfo, cache: RangeCache | None) -> np.ndarray:
    if cache is None:
        sidecar = read_sidecar(shard.url)
    else:
        size = sidecar_bytes(shard.samples)
        data = cache.read(shard.url + SUFFIX, shard.sha256, size, 0, size)
        sidecar = parse_sidecar(data, shard.url)
    if (sidecar.tar_bytes, sidecar.samples, sidecar.sha256) != (shard.bytes, shard.samples, shard.sha256):
        raise DataError(
            f"{shard.url + SUFFIX}: belongs to another tar than the one in the index; {index_remedy(shard.url)}"
        )
    return sidecar.offsets


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
