"""Tables shared by the models of one evaluation."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CONFUSION = "confusion.npz"  # the classes, and the (true, predicted, count) pairs of each model
PER_CLASS = "per_class.csv"  # a row per model and class
PRECISION_RECALL = "precision_recall.csv"  # a row per model, class and recall


def append_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Add rows to a CSV file, which starts with its header."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(header)
        writer.writerows(rows)
