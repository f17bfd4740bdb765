"""Builds indexes of shards written by any tool: reads each tar once, and only if it is new or changed."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import DataError
from pipeline.shards import store, urls
from pipeline.shards.compressed import advice
from pipeline.shards.index import CONTENT, HEADERS, LISTING, DatasetIndex, make_index
from pipeline.shards.index_check import INDEX_NAME, no_shards
from pipeline.shards.index_file import decode_index, encode_index
from pipeline.shards.members import Keys
from pipeline.shards.parallel import Mapper, map_shards
from pipeline.shards.pattern import Pattern, parse_pattern
from pipeline.shards.scan import ShardRecord, first_extensions, guess_image, scan_shard
from pipeline.shards.sidecar import MAGIC, SUFFIX, header_of, read_sidecar, sidecar_bytes, write_sidecar
from pipeline.shards.store_errors import unwritable
from pipeline.shards.tar import TornTar
from pipeline.targets import Members, default_members, target_kind, tool_targets
from pipeline.targets.base import Target

Listing = dict[str, tuple[int, int]]  # name: (bytes, mtime in ns)
KEEP_EVERY_S = 60.0  # of reading tars: what an interruption costs at most, besides the tars being read


def build_index(
    pattern: str,
    *,
    classes: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    image_key: str | None = None,
    targets: Members | None = None,
    headers_only: bool = False,
    workers: int | None = None,
    mapper: Mapper = map_shards,
) -> DatasetIndex:
    """Indexes the shards that match a pattern and returns the index of exactly these.

    Shards of the folder that were indexed before and still exist stay in `index.json`. Skips shards that still match
    their index row and sidecar (same size, same hash in both; local tars must not be newer than the sidecar); if the
    members changed, rereads only their headers and labels. Classes, by kind of target, and members default to those of
    the earlier index; without one, to no classes, the usual image extensions (or the only one in the first shard), and
    the kinds of targets whose usual members the first shard has. `headers_only` reads only headers and labels, of
    remote shards by byte ranges, but misses a changed image of equal size. A plain list of classes belongs to the only
    kind with classes.
    Raises DataError if nothing matches, a tar is torn or its samples are scattered, labels lie outside the classes, or
    the folder cannot be written to.
    """
    parsed = parse_pattern(pattern)
    with folder_lock(parsed.folder, "index"):
        listing = store.list_sizes(parsed.folder, [INDEX_NAME, *parsed.literals])
        names = chosen = chosen_shards(parsed, listing)
        earlier = earlier_index(parsed.folder, listing)
        old = set(earlier.names) if earlier.members and not _is_older(earlier) else set()
        new = [urls.join(parsed.folder, name) for name in names if name not in old]
        keys, members = find_members(earlier, image_key, targets, new)
        known = {record.name: record for record in earlier.records() if record.name in listing}
        hash_of = HEADERS if headers_only else CONTENT
        same = keys == earlier.keys and members == earlier.members and not _is_older(earlier)
        if not same or hash_of != earlier.hash_of:
            names = sorted({*names, *known})  # all rows share one kind of hash, image key and targets
        jobs = _jobs(names, known, earlier, same, hash_of, listing)
        _keep_others([job.name for job in jobs if job.name + SUFFIX in listing], parsed.folder)
        named = {**earlier.classes, **by_kind(classes, members)}

        def index_with(fresh: Sequence[ShardRecord], before: Mapping[str, ShardRecord]) -> DatasetIndex:
            rows = {**before, **{record.name: record for record in fresh}}
            ordered = [rows[name] for name in sorted(rows)]
            return make_index(parsed.folder, ordered, named, keys, members, hash_of=hash_of)

        # Rows of one index have the same members and kind of hash, so others wait until all have been read again.
        before = known if same and hash_of == earlier.hash_of else {}
        task = ScanTask(pattern, parsed.folder, keys, tool_targets(members))
        results = mapper(task, jobs, label="indexing", workers=workers)
        fresh = _collect(results, lambda fresh: write_index(index_with(fresh, before)))
        index = index_with(fresh, known)
        write_index(index)
    return index.select(chosen)


def chosen_shards(pattern: Pattern, listing: Listing) -> list[str]:
    """The names of the tars that a pattern matches. Raises DataError if there are none, or one that it names is not."""
    names = [name for name in pattern.select(listing) if name.endswith(".tar")]
    if not names:
        raise no_shards(pattern, listing)
    if absent := [name for name in pattern.literals if name not in listing]:
        raise DataError(f"{pattern.text!r}: {pattern.folder} lacks {absent[0]}; correct the pattern")
    if packed := pattern.select_packed(listing):
        print(f"left out: {advice(pattern.folder, packed)}", file=sys.stderr)
    return names


def write_index(index: DatasetIndex) -> None:
    """Writes `index.json` unless it is unchanged. Raises DataError if labels lie outside the classes."""
    for kind, classes in index.classes.items():
        _check_labels(index, kind, classes)
    url, data = urls.join(index.url, INDEX_NAME), encode_index(index)
    if INDEX_NAME in store.list_sizes(index.url) and store.read_bytes(url) == data:
        return
    store.write_bytes(url, data)


@contextlib.contextmanager
def folder_lock(folder: str, purpose: str) -> Iterator[None]:
    """Locks a local folder for one process; others wait and print a notice. Remote folders have no lock."""
    if not urls.is_local(folder) or not Path(folder).is_dir():
        yield
        return
    path = Path(folder) / f".{purpose}.lock"
    try:
        file = open(path, "ab")  # noqa: SIM115, closed below
    except OSError as error:
        raise unwritable(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is working here; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class ScanJob(NamedTuple):
    """A tar to read. With `sha256`, its content is known and its sidecar matches: headers and labels suffice."""

    name: str
    headers_only: bool
    sha256: str | None


@dataclass(frozen=True)
class ScanTask:
    """Reads one tar and writes its sidecar; returns the row, or a message that says what is wrong with the tar."""

    pattern: str
    folder: str
    keys: Keys
    targets: Sequence[Target]

    def __call__(self, job: ScanJob) -> ShardRecord | str:
        url = urls.join(self.folder, job.name)
        try:
            scan = scan_shard(url, self.keys, self.targets, headers_only=job.headers_only)
        except TornTar as tear:
            return f"{url}: {tear}; {tear.remedy}, then index again"
        for fault in scan.faults(self.pattern):
            return f"{url}: {fault}"
        sidecar = scan.sidecar if job.sha256 is None else replace(scan.sidecar, sha256=job.sha256)
        # An earlier version may have split the tar into samples differently.
        if job.sha256 is None or not np.array_equal(read_sidecar(url).offsets, sidecar.offsets):
            write_sidecar(url, sidecar)
        return replace(scan.record(job.name), sha256=sidecar.sha256)


def _jobs(
    names: Sequence[str],
    known: Mapping[str, ShardRecord],
    earlier: DatasetIndex,
    same: bool,
    hash_of: str,
    listing: Listing,
) -> list[ScanJob]:
    """The tars to read: new or changed ones, and the headers of the others unless the members are the `same`."""
    jobs, headers_only = [], hash_of == HEADERS
    rows = [known[name] for name in names if name in known and hash_of == earlier.hash_of]
    fitting = _fitting([row for row in rows if _may_fit(row, listing)], earlier.url)
    for name in names:
        record = known.get(name)
        if record is None or name not in fitting:
            jobs.append(ScanJob(name, headers_only, None))
        elif not same:
            jobs.append(ScanJob(name, True, None if headers_only else record.sha256))
    return jobs


def _collect(results: Iterator[ShardRecord | str], keep: Callable[[list[ShardRecord]], None]) -> list[ShardRecord]:
    """All results of reading tars; every KEEP_EVERY_S, and when interrupted, `keep` gets what there is so far."""
    fresh, refused, kept = list[ShardRecord](), list[str](), time.monotonic()
    try:
        for result in results:
            if isinstance(result, str):
                refused.append(result)
            else:
                fresh.append(result)
            if time.monotonic() - kept > KEEP_EVERY_S and not refused:
                keep(fresh)
                kept = time.monotonic()
    except KeyboardInterrupt:
        if fresh and not refused:
            keep(fresh)
        raise
    if refused:
        others = f" (and {len(refused) - 1} more shards cannot be indexed)" if len(refused) > 1 else ""
        raise DataError(f"{refused[0]}{others}")
    return fresh


def earlier_index(folder: str, listing: Listing) -> DatasetIndex:
    """The existing index, even if in an older format; an empty one if it is missing or unreadable."""
    if INDEX_NAME in listing:
        data = store.read_bytes(urls.join(folder, INDEX_NAME))
        try:
            index = decode_index(data, folder, older=True)
        except DataError:
            print(f"{folder}: rebuilding its unreadable index; give its classes with --classes", file=sys.stderr)
            return make_index(folder, [])
        if _is_older(index):
            print(f"{folder}: updating its index from an older format", file=sys.stderr)
        return index
    return make_index(folder, [])


def _is_older(index: DatasetIndex) -> bool:
    """Whether the index was read from a file in an older format."""
    return index.members.keys() != index.columns.keys() and index.hash_of != LISTING


def find_members(
    earlier: DatasetIndex, image_key: str | None, targets: Members | None, new: Sequence[str]
) -> tuple[Keys, Members]:
    """The given members, or the earlier index's, or those guessed from the first of the `new` shards with samples."""
    keys, members = earlier.keys, dict(earlier.members)
    first, found = next(((url, found) for url in new if (found := first_extensions(url))), ("", set()))
    if found:
        if not earlier.names and image_key is None and (guessed := guess_image(found, keys)) != keys:
            print(f"{first}: using the members named {guessed.image_key} as images", file=sys.stderr)
            keys = guessed
        if _is_older(earlier):  # older formats named a label even if there was none
            members = {kind: one for kind, one in members.items() if found.issuperset(one)}
        taken = {member for one in (*members.values(), *(targets or {}).values()) for member in one}
        members = default_members(found - taken) | members
    return keys.override(image_key), members | dict(targets or {})


def by_kind(classes: Mapping[str, Sequence[str]] | Sequence[str] | None, members: Members) -> dict[str, list[str]]:
    """Class names by kind; a plain list belongs to the only kind with classes, otherwise to `class_id`."""
    if isinstance(classes, Mapping):
        return {kind: list(names) for kind, names in classes.items()}
    classed = [kind for kind in members if target_kind(kind).classed]
    return {} if classes is None else {classed[0] if len(classed) == 1 else "class_id": list(classes)}


def _may_fit(record: ShardRecord, listing: Listing) -> bool:
    """Whether a row of the earlier index describes the tar and its sidecar, as far as a listing tells."""
    if record.name + SUFFIX not in listing:
        return False
    (size, written), (sidecar_size, sidecar_written) = listing[record.name], listing[record.name + SUFFIX]
    return size == record.bytes and written <= sidecar_written and sidecar_size == sidecar_bytes(record.samples)


def _keep_others(names: Sequence[str], folder: str) -> None:
    """Raise DataError if a shard's sidecar is Megatron-Energon's, which begins with the offset 0."""
    heads = store.read_heads([name + SUFFIX for name in names], [len(MAGIC)] * len(names), folder)
    for name, head in zip(names, heads, strict=True):
        if head == bytes(len(MAGIC)):
            raise DataError(
                f"{urls.join(folder, name + SUFFIX)}: found Megatron-Energon's offsets, which this would replace; use "
                "them with `minivit shards index --counts`, or copy the shards to a folder without them"
            )


def _fitting(records: Sequence[ShardRecord], folder: str) -> set[str]:
    """The names of the shards whose sidecars are of the tars that their rows describe."""
    expected = [header_of(record.bytes, record.samples, record.sha256) for record in records]
    heads = store.read_heads([record.name + SUFFIX for record in records], [len(one) for one in expected], folder)
    return {record.name for record, one, head in zip(records, expected, heads, strict=True) if head == one}


def _check_labels(index: DatasetIndex, kind: str, classes: Sequence[str]) -> None:
    repeated = {name for name in classes if classes.count(name) > 1} if len(set(classes)) < len(classes) else set()
    if repeated:
        raise DataError(f"{index.url}: the class name {min(repeated)!r} appears twice; give each class its own name")
    target = target_kind(kind)
    for i, name in enumerate(index.names if kind in index.columns else []):
        known = target.known_classes(index.summary(kind, i))
        if known is not None and known > len(classes):
            raise DataError(
                f"{urls.join(index.url, name)}: found label {known - 1}, but {len(classes)} classes allow 0 to "
                f"{len(classes) - 1}; name all classes, or correct the label"
            )
