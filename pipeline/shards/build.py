"""Making indexes, for shards written by any tool: each tar is read once, and only if it is new or changed."""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import DataError
from pipeline.shards import store
from pipeline.shards.compressed import advice
from pipeline.shards.index import DatasetIndex, decode_index, encode_index, make_index
from pipeline.shards.index_check import INDEX_NAME, no_shards
from pipeline.shards.members import Keys
from pipeline.shards.parallel import map_shards
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.scan import ShardRecord, guess_image, scan_shard
from pipeline.shards.sidecar import SUFFIX, read_sidecar, write_sidecar
from pipeline.shards.tar import TornTar

Listing = dict[str, tuple[int, int]]  # name: (bytes, mtime in ns)


def build_index(
    pattern: str,
    *,
    classes: list[str] | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    headers_only: bool = False,
    workers: int | None = None,
) -> DatasetIndex:
    """Index the shards that a pattern means and return the index of exactly these.

    Shards of the folder that were indexed before and are still there stay in `index.json`. A shard is not read again
    if its index and sidecar fit it (size, hash named in both; local ones also must not have been written since); for
    other keys than before, its headers and labels are. Classes and keys default to those of the earlier index, else to
    none, the usual extensions of images (or the only one there is in the first shard) and "cls". With `headers_only`,
    headers and labels alone are read: of a remote shard only ranges, but a changed image of equal size goes unnoticed.
    Raises DataError if nothing matches, a tar is torn or its samples do not lie together, labels lie outside the
    classes, or the folder takes no files.
    """
    parsed = parse_pattern(pattern)
    with folder_lock(parsed.folder, "index"):
        listing = store.list_sizes(parsed.folder, [INDEX_NAME, *parsed.literals])
        names = [name for name in parsed.select(listing) if name.endswith(".tar")]
        chosen, absent = names, [name for name in parsed.literals if name not in listing]
        if not names:
            raise no_shards(parsed, listing)
        if absent:
            raise DataError(f"{pattern!r} names {absent[0]}, which {parsed.folder} does not hold; correct the pattern")
        if packed := parsed.select_packed(listing):
            print(f"left out: {advice(parsed.folder, packed)}", file=sys.stderr)
        earlier = _earlier_index(parsed.folder, listing)
        keys = _keys(earlier, image_key, label_key, [store.join(parsed.folder, name) for name in names])
        known = {record.name: record for record in earlier.records() if record.name in listing}
        if (keys, headers_only) != (earlier.keys, earlier.headers_only):
            names = sorted({*names, *known})  # one index, one kind of hash, image and label
        jobs = _jobs(names, known, earlier, keys, headers_only, listing)
        fresh = _scan_all(ScanTask(pattern, parsed.folder, keys), jobs, workers)
        rows = {**known, **{record.name: record for record in fresh}}
        ordered = [rows[name] for name in sorted(rows)]
        index = make_index(parsed.folder, ordered, classes or earlier.classes, keys, headers_only=headers_only)
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


class ScanJob(NamedTuple):
    """A tar to read. With `sha256`, its content is known and its sidecar fits: headers and labels are enough."""

    name: str
    headers_only: bool
    sha256: str | None


@dataclass(frozen=True)
class ScanTask:
    """Read one tar and write its sidecar; gives the row, or in words what is wrong with the tar."""

    pattern: str
    folder: str
    keys: Keys

    def __call__(self, job: ScanJob) -> ShardRecord | str:
        url = store.join(self.folder, job.name)
        try:
            scan = scan_shard(url, self.keys, headers_only=job.headers_only)
        except TornTar as tear:
            return f"{url}: {tear}; {tear.mend}, then index again"
        for fault in scan.faults():
            return f"{url}: {fault}; {regroup_mend(self.pattern)}"
        sidecar = scan.sidecar if job.sha256 is None else replace(scan.sidecar, sha256=job.sha256)
        # An earlier version may have cut the tar into samples differently.
        if job.sha256 is None or not np.array_equal(read_sidecar(url).offsets, sidecar.offsets):
            write_sidecar(url, sidecar)
        return replace(scan.record(job.name), sha256=sidecar.sha256)


def regroup_mend(pattern: str) -> str:
    """How to fix tars whose samples are scattered: the end of an error."""
    return f"run `minivit shards regroup '{pattern}' --out FOLDER`, which rewrites them with each sample in one piece"


def _jobs(
    names: Sequence[str],
    known: Mapping[str, ShardRecord],
    earlier: DatasetIndex,
    keys: Keys,
    headers_only: bool,
    listing: Listing,
) -> list[ScanJob]:
    """What is to be read: tars that are new or changed, and the headers of the others if the keys are."""
    jobs = []
    for name in names:
        record = known.get(name)
        if record is None or headers_only != earlier.headers_only or not _fits(record, earlier.url, listing):
            jobs.append(ScanJob(name, headers_only, None))
        elif keys != earlier.keys:
            jobs.append(ScanJob(name, True, None if headers_only else record.sha256))
    return jobs


def _scan_all(task: ScanTask, jobs: Sequence[ScanJob], workers: int | None) -> list[ShardRecord]:
    results = list(map_shards(task, jobs, label="indexing", workers=workers))
    refused = [result for result in results if isinstance(result, str)]
    if refused:
        others = f" (and {len(refused) - 1} more shards cannot be indexed)" if len(refused) > 1 else ""
        raise DataError(f"{refused[0]}{others}")
    return [result for result in results if isinstance(result, ShardRecord)]


def _earlier_index(folder: str, listing: Listing) -> DatasetIndex:
    """The existing index, also of the format before; an empty one if there is none or it cannot be read."""
    if INDEX_NAME in listing:
        data = store.read_bytes(store.join(folder, INDEX_NAME))
        try:
            index = decode_index(data, folder, older=True)
        except DataError:
            print(
                f"{folder}: its index cannot be read and is rebuilt; give its classes with --classes", file=sys.stderr
            )
            return make_index(folder, [], None)
        if not index.keys.image:
            print(f"{folder}: its index has an older format and is updated", file=sys.stderr)
        return index
    return make_index(folder, [], None)


def _keys(earlier: DatasetIndex, image_key: str | None, label_key: str | None, urls: Sequence[str]) -> Keys:
    """The keys given, else the earlier index's, else what the first shard suggests."""
    keys = earlier.keys if earlier.keys.image else Keys(label=earlier.keys.label)
    if image_key is None and not earlier.names:
        guessed = guess_image(urls[0], keys)
        if guessed != keys:
            print(f"{urls[0]}: uses the members named {guessed.image_key} as images", file=sys.stderr)
        keys = guessed
    return keys.override(image_key, label_key)


def _fits(record: ShardRecord, folder: str, listing: Listing) -> bool:
    """Whether a row of the earlier index and the sidecar still describe the tar."""
    if record.name + SUFFIX not in listing:
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
