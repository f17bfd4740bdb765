"""Files of a run folder, any of which may be missing, torn by a crash, or half written."""

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
    """An object from a JSON file, or None if it is missing or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_lines(path: Path) -> list[Row]:
    """Objects from a JSON-lines file; a line torn by a crash is left out."""
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
    """The rows of a CSV file, column -> text; none if it is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, restval=""))
    except OSError:
        return []


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; none if it is missing or torn."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        return {}


def as_time(value: Any) -> datetime | None:
    """A moment from unix seconds or an ISO 8601 string, in local time."""
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value).astimezone()
        return datetime.fromtimestamp(value).astimezone() if is_number(value) else None
    except (ValueError, OverflowError, OSError):
        return None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
