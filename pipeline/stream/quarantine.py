"""Bad samples: recorded in a manifest, limited in number, and excluded by later runs.

`shards.bad_samples` defines manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.bad_samples import MAX_REASONS, Line, in_short, place_of, quarantine_files, read_quarantine_lines
from pipeline.shards.index import DatasetIndex, load_offsets
from pipeline.stream.read import BadSample, SampleReader

MAX_IN_A_ROW = 64
MAX_SHARE = 0.1
SHARE_GRACE = 64  # bad samples before the share limit applies, as a small data set may have a few


class Quarantine:
    """Records the bad samples that one loader worker encounters.

    Args:
        path: manifest of the run; None writes no manifest. Each worker of each rank writes its own file next to it,
            `NAME.PART.jsonl`, as appends from several hosts to one file may overwrite each other.
        part: identifies the writer.
        samples: number of samples of each data set; for a small one, more than half bad is too many.
    """

    def __init__(self, path: Path | None, part: str, samples: Mapping[str, int] | None = None) -> None:
        self._path = path.with_suffix(f".{part}.jsonl") if path is not None else None
        self._noted = set(map(place_of, whole_lines(self._path))) if self._path and self._path.exists() else set()
        self._grace = {name: min(SHARE_GRACE, number // 2) for name, number in (samples or {}).items()}
        # Per data set: in a mixture, a large one must not hide the bad samples of a small one.
        self._seen: Counter[str] = Counter()
        self._reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)  # counts each sample once over all epochs
        self._met: set[tuple[str, str, int]] = set()
        self._in_a_row: Counter[str] = Counter()  # reasons of the bad samples since the last good one

    def good(self, dataset: str) -> None:
        """Record a good sample."""
        self._seen[dataset] += 1
        self._in_a_row.clear()

    def bad(self, shard: str, index: int, key: str, reason: str, dataset: str) -> None:
        """Record a bad sample, once per manifest. Raises DataError if there are too many."""
        self._seen[dataset] += 1
        if (dataset, shard, index) not in self._met:
            self._met.add((dataset, shard, index))
            self._reasons[dataset][in_short(reason)] += 1
        self._in_a_row[in_short(reason)] += 1
        line = {"dataset": dataset, "shard": shard, "index": index, "key": key, "reason": reason}
        if place_of(line) not in self._noted:
            self._noted.add(place_of(line))
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
        last = f"the last is {shard}/{key}: {reason}; check the shards with `minivit shards verify`"
        in_a_row, bad, seen = self._in_a_row.total(), self._reasons[dataset].total(), self._seen[dataset]
        if in_a_row >= MAX_IN_A_ROW:
            raise DataError(
                f"{in_a_row} bad samples in a row (at most {MAX_IN_A_ROW - 1} are skipped): "
                f"{most_frequent(self._in_a_row)}; {last}"
            )
        if bad > max(self._grace.get(dataset, SHARE_GRACE), MAX_SHARE * seen):
            reasons = most_frequent(self._reasons[dataset])
            raise DataError(
                f"{bad} of {seen} samples of {dataset} are bad (at most {MAX_SHARE:.0%} are allowed): {reasons}; {last}"
            )


def most_frequent(reasons: Counter[str]) -> str:
    """The most frequent reasons with their counts."""
    most = reasons.most_common(MAX_REASONS)
    rest = reasons.total() - sum(number for _, number in most)
    return ", ".join(f"{reason} in {number:,}" for reason, number in most) + (f", others in {rest:,}" if rest else "")


def whole_lines(path: Path) -> list[Line]:
    """The lines of a file to append to, after truncating a last line that a crash left incomplete."""
    data = path.read_bytes()
    if torn := len(data) - (data.rfind(b"\n") + 1):
        os.truncate(path, len(data) - torn)
    return read_quarantine_lines(path)


def load_excluded(manifest: str, index: DatasetIndex, dataset: str | None = None) -> dict[int, np.ndarray]:
    """Sample indices to exclude, by shard index, from a run's quarantine manifest.

    `manifest` is the path given to the run: the files that its workers wrote next to it are also read. A line without
    an `index` is looked up by its `key`, which reads that shard. Shards outside the data set are skipped, and so are
    lines of a data set other than `dataset`, since data sets may have shards with equal names.

    Raises:
        DataError: there is no such manifest, a line is invalid, or a shard does not contain a key.
    """
    files = _files(manifest)
    numbers = {name: shard for shard, name in enumerate(index.names)}
    excluded: dict[int, set[int]] = {}
    by_key: dict[int, set[str]] = {}
    for file in files:
        for line in read_quarantine_lines(file):
            if dataset is not None and line.get("dataset", dataset) != dataset:
                continue
            shard = numbers.get(line["shard"])
            if shard is not None and "index" in line:
                excluded.setdefault(shard, set()).add(line["index"])
            elif shard is not None:
                by_key.setdefault(shard, set()).add(line["key"])
    for shard, keys in by_key.items():
        excluded.setdefault(shard, set()).update(_find_keys(index, shard, keys, manifest))
    for shard, samples in excluded.items():
        if max(samples) >= index.counts[shard]:
            raise DataError(
                f"{manifest} excludes sample {max(samples)} of {index.names[shard]}, which has {index.counts[shard]}; "
                "the shard has changed since, so remove data.exclude or its line"
            )
    return {shard: np.array(sorted(samples), dtype=np.int64) for shard, samples in excluded.items()}


def manifest_digest(manifest: str) -> str:
    """32 hex digits that identify a manifest's samples, independent of files and order. Raises DataError."""
    entries = (line for file in _files(manifest) for line in read_quarantine_lines(file))
    lines = {json.dumps([line.get(name) for name in ("dataset", "shard", "index", "key")]) for line in entries}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32]


def _files(manifest: str) -> list[Path]:
    """The files of a manifest: its own, and those of workers next to it. Raises DataError if there are none."""
    files = quarantine_files(Path(manifest))
    if not files:
        raise DataError(
            f"data.exclude: there is no quarantine manifest {manifest}; correct the path or remove the setting"
        )
    return files


def _find_keys(index: DatasetIndex, shard: int, keys: set[str], manifest: str) -> set[int]:
    reader, found = SampleReader(index), {}
    for number in range(len(load_offsets(index.shards[shard])) - 1):
        try:
            key, _ = reader.read(np.array([shard]), np.array([number])).members(0)
        except BadSample:
            continue
        if key in keys:
            found[key] = number
    if keys - set(found):
        missing = min(keys - set(found))
        raise DataError(f"{manifest} excludes {missing!r}, which is not in {index.names[shard]}; remove its line")
    return set(found.values())
