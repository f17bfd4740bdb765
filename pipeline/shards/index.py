"""The index of a folder of shards: how many samples each tar holds, its bytes, hash and labels.

`index.json` is column-wise and read whole, also for hundreds of thousands of shards; where the samples of a shard lie
is in its sidecar, read when the shard's turn comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, overload

import numpy as np

from pipeline.config.class_names import class_name
from pipeline.errors import DataError
from pipeline.shards import store
from pipeline.shards.cache import RangeCache
from pipeline.shards.index_check import INDEX_NAME, check_against, no_index
from pipeline.shards.members import DEFAULT_KEYS, Keys
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.scan import NOTHING, Lacks, ShardRecord
from pipeline.shards.sidecar import SUFFIX, mend, parse_sidecar, read_sidecar, sidecar_bytes

FORMAT, VERSION = "minivit-shards", 3
COLUMNS = "name", "samples", "bytes", "sha256", "label_min", "label_max"
HASH_DIGITS = 64  # of a SHA-256
DIGEST_CHARACTERS = 32  # MLflow takes up to 36


class OlderIndex(DataError):
    """An index of the format before; indexing again brings it up to date from headers and labels alone."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar: where it is, how many samples and bytes it holds, and the SHA-256 of those bytes."""

    url: str
    samples: int
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """The shards that a pattern selects from one folder, as columns."""

    url: str  # of the folder
    classes: list[str] | None
    keys: Keys  # the members that the label bounds and `lacks` come from
    names: list[str]
    counts: np.ndarray  # int64 [num_shards], samples in each
    sizes: np.ndarray  # int64 [num_shards], bytes of each
    sha256: (
        str  # the HASH_DIGITS of each, one behind the other: a list of them would be slow to load and twice as large
    )
    label_min: list[int | None]
    label_max: list[int | None]
    lacks: dict[int, Lacks]  # by position, of the shards that hold samples without image or label
    headers_only: bool = False  # the hashes are those of headers and labels, not of whole tars

    def __post_init__(self) -> None:
        if self.classes is not None:
            object.__setattr__(self, "classes", [class_name(name) for name in self.classes])

    @property
    def shards(self) -> Sequence[ShardInfo]:
        return _Shards(self)

    @property
    def num_samples(self) -> int:
        return int(self.counts.sum())

    @property
    def label_range(self) -> tuple[int, int] | None:
        """The smallest and largest class number; None if no sample has one."""
        low = [label for label in self.label_min if label is not None]
        high = [label for label in self.label_max if label is not None]
        return (min(low), max(high)) if low and high else None

    @cached_property
    def total_lacks(self) -> Lacks:
        return reduce(Lacks.plus, self.lacks.values(), NOTHING)

    @cached_property
    def digest(self) -> str:
        """Names the content: hexadecimal, from the names, hashes and sample counts of the shards in order."""
        counts = map(str, self.counts.tolist())
        rows = map(" ".join, zip(self.names, self._hashes(), counts, strict=True))
        return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()[:DIGEST_CHARACTERS]

    def records(self) -> list[ShardRecord]:
        counts, sizes = self.counts.tolist(), self.sizes.tolist()
        lacks = [self.lacks.get(i, NOTHING) for i in range(len(self.names))]
        columns = self.names, counts, sizes, self._hashes(), self.label_min, self.label_max, lacks
        return [ShardRecord(*row) for row in zip(*columns, strict=True)]

    def hash_of(self, i: int) -> str:
        """SHA-256 of a shard, hexadecimal."""
        return self.sha256[i * HASH_DIGITS : (i + 1) * HASH_DIGITS]

    def _hashes(self) -> list[str]:
        return [self.hash_of(i) for i in range(len(self.names))]

    def select(self, names: Sequence[str]) -> DatasetIndex:
        """The index of these shards alone, in this order."""
        if names == self.names:
            return self
        rows = dict(zip(self.names, self.records(), strict=True))
        chosen = [rows[name] for name in names]
        return make_index(self.url, chosen, self.classes, self.keys, headers_only=self.headers_only)


class _Shards(Sequence[ShardInfo]):
    """The shards of an index, made when asked for: a list of all would weigh more than the index."""

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
        url = store.join(index.url, index.names[i])
        return ShardInfo(url, int(index.counts[i]), int(index.sizes[i]), index.hash_of(i))


def make_index(
    url: str,
    records: Sequence[ShardRecord],
    classes: list[str] | None,
    keys: Keys = DEFAULT_KEYS,
    *,
    headers_only: bool = False,
) -> DatasetIndex:
    """An index from its rows."""
    return DatasetIndex(
        url,
        classes,
        keys,
        names=[record.name for record in records],
        counts=np.array([record.samples for record in records], np.int64),
        sizes=np.array([record.bytes for record in records], np.int64),
        sha256="".join(record.sha256 for record in records),
        label_min=[record.label_min for record in records],
        label_max=[record.label_max for record in records],
        lacks={i: record.lacks for i, record in enumerate(records) if record.lacks != NOTHING},
        headers_only=headers_only,
    )


def load_index(pattern: str, *, check: bool = True) -> DatasetIndex:
    """The index of the shards that a folder, tar, glob or brace pattern means.

    `check` compares it with the folder's listing: sizes of tars and sidecars, tars it does not know. One process of a
    job is enough for that; with `check` off, nothing but the index file is touched, however many shards there are.
    Raises DataError if nothing matches, the index is missing, or it does not match its tars.
    """
    parsed = parse_pattern(pattern)
    url = store.join(parsed.folder, INDEX_NAME)
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
        raise DataError(f"{store.join(parsed.folder, unknown[0])}: not in {url}{_others(unknown)}; {mend(pattern)}")
    absent = [name for name in parsed.literals if name not in known]
    if absent:
        raise DataError(f"{pattern!r} names {absent[0]}{_others(absent)}, which {parsed.folder} does not hold")
    if not names:
        raise DataError(f"{pattern!r} matches none of the {len(index.names)} shards in {url}; correct the pattern")
    index = index.select(names)
    if check:
        check_against(index, listing, pattern)
    return index


def load_offsets(shard: ShardInfo, cache: RangeCache | None = None) -> np.ndarray:
    """uint64 [samples + 1]: sample i is the tar's bytes offsets[i] to offsets[i + 1], whole members with headers.

    Raises DataError if the sidecar is missing, damaged, or speaks of another tar.
    """
    if cache is None:
        sidecar = read_sidecar(shard.url)
    else:
        size = sidecar_bytes(shard.samples)
        data = cache.read(shard.url + SUFFIX, shard.sha256, size, 0, size)
        sidecar = parse_sidecar(data, shard.url)
    if (sidecar.tar_bytes, sidecar.samples, sidecar.sha256) != (shard.bytes, shard.samples, shard.sha256):
        raise DataError(f"{shard.url + SUFFIX}: belongs to another tar than the index describes; {mend(shard.url)}")
    return sidecar.offsets


def encode_index(index: DatasetIndex) -> bytes:
    columns = index.names, index.counts.tolist(), index.sizes.tolist(), index.sha256, index.label_min, index.label_max
    document = {
        "format": FORMAT,
        "version": VERSION,
        "classes": index.classes,
        "image_key": index.keys.image_key,
        "label_key": index.keys.label,
        "hash_of": "headers" if index.headers_only else "content",
        "num_shards": len(index.names),
        "num_samples": index.num_samples,
        "num_bytes": int(index.sizes.sum()),
        "shards": dict(zip(COLUMNS, columns, strict=True)),
        "lacks": index.lacks,
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def decode_index(data: bytes, folder: str, *, older: bool = False) -> DatasetIndex:
    """The index of all shards of a folder from its file. Raises DataError if it is not one.

    With `older`, format 2 is read too: it does not record which samples lack an image, so its image keys are empty.
    """
    url = store.join(folder, INDEX_NAME)
    try:
        document = json.loads(data)
        version = document["version"]
        if document["format"] != FORMAT or version not in (VERSION - 1, VERSION):
            raise ValueError(f"format {document['format']!r} version {version!r}")
        shards = document["shards"]
        names, counts, sizes, hashes, low, high = (shards[column] for column in COLUMNS)
        lengths = {len(names), len(counts), len(sizes), len(low), len(high), document["num_shards"]}
        if len(lengths) != 1 or len(hashes) != HASH_DIGITS * len(names):
            raise ValueError("columns of different lengths")
        joined = "\0".join(names) + "\0" if names else ""
        if "/" in joined or not joined.count(".tar\0") == joined.count("\0") == len(names):
            raise ValueError("a shard's name that is not a tar of this folder")
        keys = Keys((), document["label_key"])
        if version == VERSION:
            keys = keys.override(document["image_key"], None)
        headers_only = document["hash_of"] == "headers"
        columns = names, _column(counts), _column(sizes), hashes, low, high, _lacks(document, len(names))
        index = DatasetIndex(folder, document["classes"], keys, *columns, headers_only=headers_only)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{url}: not an index of format {VERSION} ({error!r}); {mend(folder)}") from None
    if version != VERSION and not older:
        raise OlderIndex(
            f"{url}: has format {version}, which does not say which samples lack an image; {mend(folder)} to bring it "
            f"to format {VERSION}"
        )
    return index


def _column(values: list[Any]) -> np.ndarray:
    column = np.array(values, np.int64)
    if column.ndim != 1 or (column.size and column.min() < 0):
        raise ValueError("a negative count")
    return column


def _lacks(document: dict[str, Any], num_shards: int) -> dict[int, Lacks]:
    lacks = {int(i): Lacks(*counts) for i, counts in document.get("lacks", {}).items()}
    if any(not 0 <= i < num_shards or min(counts) < 0 for i, counts in lacks.items()):
        raise ValueError("counts of unusable samples that cannot be")
    return lacks


def _others(names: list[str]) -> str:
    return f" (nor {len(names) - 1} more)" if len(names) > 1 else ""
