"""Making indexes, for shards written by any tool: each tar is read once, and only if it is new or changed."""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.shards import store
from pipeline.shards.index import INDEX_NAME, DatasetIndex, decode_index, encode_index, make_index
from pipeline.shards.parallel import map_shards
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.scan import ShardRecord, scan_shard
from pipeline.shards.sidecar import SUFFIX, read_sidecar, write_sidecar
from pipeline.shards.tar import TornTar

Listing = dict[str, tuple[int, int]]  # name: (bytes, mtime in ns)


def build_index(
    pattern: str,
    *,
    classes: list[str] | None = None,
    label_key: str | None = None,
    headers_only: bool = False,
    workers: int | None = None,
) -> DatasetIndex:
    """Index the shards that a pattern means and return the index of exactly these.

    Shards of the folder that were indexed before and are still there stay in `index.json`. A shard is not read again
    if its index and sidecar fit it (size, hash named in both; local ones also must not have been written since).
    `classes` and `label_key` default to those of the earlier index, else to none and "cls". With `headers_only`,
    headers and labels alone are read: of a remote shard only ranges, but a changed image of equal size goes unnoticed.
    Raises DataError if nothing matches, a tar is torn, labels lie outside the classes, or the folder takes no files.
    """
    parsed = parse_pattern(pattern)
    with folder_lock(parsed.folder, "index"):
        listing = store.list_sizes(parsed.folder, [INDEX_NAME, *parsed.literals])
        names = [name for name in parsed.select(listing) if name.endswith(".tar")]
        chosen, absent = names, [name for name in parsed.literals if name not in listing]
        if not names or absent:
            missing = f"names {absent[0]}, which {parsed.folder} does not hold" if absent else "matches no shards"
            raise DataError(f"{pattern!r} {missing}; correct the pattern")
        earlier = _earlier_index(parsed.folder, listing)
        label_key = label_key or earlier.label_key
        known = {record.name: record for record in earlier.records() if record.name in listing}
        alike = (label_key, headers_only) == (earlier.label_key, earlier.headers_only)
        usable = known if alike else {}
        if not alike:
            names = sorted({*names, *known})  # one index, one kind of hash and label
        stale = [name for name in names if not _fits(usable.get(name), parsed.folder, listing)]
        fresh = _scan_all(ScanTask(parsed.folder, label_key, headers_only), stale, workers)
        rows = {**known, **{record.name: record for record in fresh}}
        ordered = [rows[name] for name in sorted(rows)]
        index = make_index(parsed.folder, ordered, classes or earlier.classes, label_key, headers_only=headers_only)
        write_index(index)
    return index.select(chosen)


def write_index(index: DatasetIndex) -> None:
    """Put `index.json` in place, unless it already says the same. Raises DataError if the labels leave the classes."""
    if index.classes is not None:
        _check_labels(index, index.classes)
    url, data = store.join(index.url, INDEX_NAME), encode_index(index)
    if INDEX_NAME in store.list_sizes(index.url) and store.read_bytes(url) == data:
        return
    store.write_bytes(url, data)


@contextlib.contextmanager
def folder_lock(folder: str, purpose: str) -> Iterator[None]:
    """One process at a time, on this machine's folder; others wait and say so. Remote folders have no lock."""
    if not store.is_local(folder) or not Path(folder).is_dir():
        yield
        return
    path = Path(folder) / f".{purpose}.lock"
    try:
        file = open(path, "ab")  # noqa: SIM115, closed below
    except OSError as error:
        raise store.unwritable(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is at work here; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class ScanTask:
    """Read one tar and write its sidecar; gives the row, or in words what is wrong with the tar."""

    folder: str
    label_key: str
    headers_only: bool

    def __call__(self, name: str) -> ShardRecord | str:
        url = store.join(self.folder, name)
        try:
            scan = scan_shard(url, self.label_key, headers_only=self.headers_only)
        except TornTar as tear:
            return f"{url}: {tear}"
        write_sidecar(url, scan.sidecar)
        return scan.record(name)


def _scan_all(task: ScanTask, names: Sequence[str], workers: int | None) -> list[ShardRecord]:
    results = list(map_shards(task, names, label="indexing", workers=workers))
    torn = [result for result in results if isinstance(result, str)]
    if torn:
        others = f", and {len(torn) - 1} more shards are damaged" if len(torn) > 1 else ""
        raise DataError(f"{torn[0]}{others}; write it again or take it out of the folder, then index anew")
    return [result for result in results if isinstance(result, ShardRecord)]


def _earlier_index(folder: str, listing: Listing) -> DatasetIndex:
    """The index that is there; an empty one if there is none or it cannot be read, since it will be replaced."""
    if INDEX_NAME in listing:
        with contextlib.suppress(DataError):
            return decode_index(store.read_bytes(store.join(folder, INDEX_NAME)), folder)
    return make_index(folder, [], None)


def _fits(record: ShardRecord | None, folder: str, listing: Listing) -> bool:
    """Whether a row of the earlier index and the sidecar still describe the tar."""
    if record is None or record.name + SUFFIX not in listing:
        return False
    size, written = listing[record.name]
    if size != record.bytes or written > listing[record.name + SUFFIX][1]:
        return False
    try:
        sidecar = read_sidecar(store.join(folder, record.name))
    except DataError:
        return False
    return (sidecar.sha256, sidecar.samples) == (record.sha256, record.samples)


def _check_labels(index: DatasetIndex, classes: list[str]) -> None:
    repeated = {name for name in classes if classes.count(name) > 1} if len(set(classes)) < len(classes) else set()
    if repeated:
        raise DataError(
            f"{index.url}: the class name {min(repeated)!r} is given twice; give each class a name of its own"
        )
    for name, label in zip(index.names, index.label_max, strict=True):
        if label is not None and label >= len(classes):
            raise DataError(
                f"{store.join(index.url, name)}: holds label {label}, but {len(classes)} classes allow 0 to "
                f"{len(classes) - 1}; name all classes, or correct the label"
            )
