"""Reads and summarises the manifests of bad samples that loaders write.

A manifest is JSON lines: dataset, shard, index, key, reason. Each loader worker of each rank writes a file of its own,
so `quarantine.jsonl` means all `quarantine.*.jsonl` next to it. Restarts, epochs and ranks may record a sample again.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

TRAIN, VAL, TEST = "quarantine.jsonl", "quarantine-val.jsonl", "quarantine.jsonl"  # in a stage's folder
PROBED = "quarantine-test.jsonl"  # of a probe's test data
MAX_REASONS = 3

Line = dict[str, Any]


@dataclass(frozen=True)
class Reason:
    """Why `count` samples are bad; `first` is the shard/key of one."""

    reason: str
    count: int
    first: str


@dataclass(frozen=True)
class BadSamples:
    """How many of `samples` samples are bad, each counted once, and the most frequent reasons."""

    bad: int
    samples: int
    reasons: list[Reason]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{found.reason} ({found.count}, such as {found.first})" for found in self.reasons]
        rest = self.bad - sum(found.count for found in self.reasons)
        return "; ".join([*parts, f"other reasons ({rest})"] if rest else parts)


def quarantine_files(manifest: Path) -> list[Path]:
    """The files that a manifest's path stands for."""
    return sorted({*manifest.parent.glob(f"{manifest.stem}.*.jsonl"), *([manifest] if manifest.is_file() else [])})


def read_quarantine(manifest: Path) -> list[Line]:
    """Every bad sample once, in the order of the shards; none if there are no files. Raises DataError."""
    lines = {place_of(line): line for file in quarantine_files(manifest) for line in read_quarantine_lines(file)}
    return sorted(lines.values(), key=lambda line: (line.get("dataset", ""), line["shard"], line.get("index", 0)))


def summarise(manifest: Path, samples: int) -> BadSamples:
    """A summary of the manifest of a data set of `samples` samples. Raises DataError."""
    lines = read_quarantine(manifest)
    by_kind: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_kind[in_short(line.get("reason", ""))].append(line)
    ranked = sorted(by_kind.values(), key=len, reverse=True)[:MAX_REASONS]
    reasons = [Reason(few[0].get("reason", ""), len(few), f"{few[0]['shard']}/{few[0]['key']}") for few in ranked]
    return BadSamples(len(lines), samples, reasons)


def in_short(reason: str) -> str:
    """A reason without the parts that vary between samples: numbers, quotations, details in brackets."""
    stand_in = {"'": "'...'", " ": ""}
    return re.sub(r" \(.*\)|'[^']*'|\d+", lambda match: stand_in.get(match[0][0], "N"), reason)


def place_of(line: Line) -> tuple[Any, ...]:
    """What identifies a sample."""
    return line.get("dataset"), line["shard"], line.get("index", line["key"])


def read_quarantine_lines(path: Path) -> list[Line]:
    """The lines of one file. Raises DataError for an invalid line."""
    lines = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            valid = isinstance(entry["shard"], str) and isinstance(entry["key"], str)
            valid = valid and isinstance(entry.get("index", 0), int) and entry.get("index", 0) >= 0
        except (ValueError, TypeError, KeyError):
            valid = False
        if valid:
            lines.append(entry)
        elif number <= text.count("\n"):  # a full disk may have cut the last line short
            raise DataError(
                f'{path}:{number} is not a line of a quarantine manifest; expected {{"shard", "index", "key"}}'
            )
    return lines
