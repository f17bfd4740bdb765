"""Reads files of a run folder, any of which may be missing, truncated by a crash, or partially written."""

from __future__ import annotations

import csv
import json
import math
import zipfile
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def read_json(path: Path) -> Row | None:
    """An object from a JSON file, or None if it is missing or truncated."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_lines(path: Path) -> list[Row]:
    """Objects from a JSON-lines file; skips a line truncated by a crash."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, column -> text; empty if it is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, restval=""))
    except OSError:
        return []


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; empty if it is missing or truncated."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        return {}


def as_time(value: Any) -> datetime | None:
    """A local time from Unix seconds or an ISO 8601 string."""
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value).astimezone()
        return datetime.fromtimestamp(value).astimezone() if is_number(value) else None
    except (ValueError, OverflowError, OSError):
        return None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
