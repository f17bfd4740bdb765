"""Rewrites tars whose samples are scattered: puts the members of each sample side by side, bytes unchanged."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.errors import DataError
from pipeline.shards import store, urls
from pipeline.shards.build import build_index, folder_lock
from pipeline.shards.index import DatasetIndex
from pipeline.shards.index_check import no_shards
from pipeline.shards.members import DEFAULT_KEYS, split_name
from pipeline.shards.parallel import map_shards
from pipeline.shards.pattern import parse_pattern
from pipeline.shards.tar import SKIP_CHUNK, TarStream, TornTar, members
from pipeline.shards.write import TarWriter
from pipeline.targets import Members

ByteRange = tuple[int, int]  # first byte and end of a member, headers included


def regroup(
    pattern: str,
    out: Path,
    *,
    image_key: str | None = None,
    targets: Members | None = None,
    workers: int | None = None,
) -> DatasetIndex:
    """Writes each tar of a pattern to `out` under its own name, samples in order of their beginnings, and indexes them.

    Several tars in one file become one. Members that belong to no sample are dropped. Raises DataError if nothing
    matches, a tar is torn, or `out` is the folder of the source.
    """
    parsed = parse_pattern(pattern)
    listing = store.list_sizes(parsed.folder, parsed.literals)
    names = [name for name in parsed.select(listing) if name.endswith(".tar")]
    if not names:
        raise no_shards(parsed, listing)
    if urls.is_local(parsed.folder) and Path(parsed.folder).resolve() == out.resolve():
        raise DataError(f"{out}: this is the source folder; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(str(out), "make"):
        for said in map_shards(RegroupTask(parsed.folder, str(out)), names, label="regrouping", workers=workers):
            if said:
                print(said, file=sys.stderr)
    chosen = f"{out}/{{{','.join(names)}}}" if len(names) > 1 else f"{out}/{names[0]}"
    return build_index(chosen, image_key=image_key, targets=targets, workers=workers)


@dataclass(frozen=True)
class RegroupTask:
    """Rewrites one tar; returns what it leaves out, or an empty string."""

    folder: str
    out: str

    def __call__(self, name: str) -> str:
        url = urls.join(self.folder, name)
        with local_copy(url, self.out) as file:
            try:
                groups, unread, links = sample_spans(file)
            except TornTar as tear:
                raise DataError(f"{url}: {tear}; {tear.remedy}") from None
            with TarWriter(Path(self.out) / name, DEFAULT_KEYS) as tar:
                for spans in groups:
                    tar.copy(b"".join(_read(file, *span) for span in spans))
                tar.finish()
        left_out = [f"its last {unread:,} bytes, which are not a tar"] if unread else []
        left_out += [f"{links:,} members of samples that are links"] if links else []
        return f"{url}: left out {' and '.join(left_out)}" if left_out else ""


def local_copy(url: str, folder: str) -> BinaryIO:
    """Opens a local file, or a temporary copy of a remote one in `folder`, for random access."""
    if urls.is_local(url):
        return store.open_url(url)
    copy = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115, closed by the caller
    with store.open_url(url) as file:
        shutil.copyfileobj(file, copy, SKIP_CHUNK)
    copy.seek(0)
    return copy


def sample_spans(file: BinaryIO) -> tuple[list[list[ByteRange]], int, int]:
    """The spans of each sample's members in order of the samples' beginnings, the trailing bytes, and the links.

    Reads past end-of-archive markers, like `tar --ignore-zeros`. Raises TornTar.
    """
    groups: list[list[ByteRange]] = []
    latest: dict[str, tuple[set[str], list[ByteRange]]] = {}  # by key: extensions and spans of its last sample
    size, stream, archive = file.seek(0, os.SEEK_END), TarStream(file), 0
    file.seek(0)
    while stream.position < size:
        first = stream.position
        try:
            for member in members(stream):
                archive = first
                split = split_name(member.name)
                if split is None:
                    continue
                key, extension = split
                if key not in latest or extension in latest[key][0]:
                    latest[key] = set(), []
                    groups.append(latest[key][1])
                latest[key][0].add(extension)
                latest[key][1].append((member.start, member.end))
        except TornTar:
            if first in (0, archive):  # a tear, not other data after a whole archive
                raise
            return groups, size - first, stream.links
    return groups, 0, stream.links


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
