"""`metrics.jsonl`: one row per report, no step twice."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

NAME = "metrics.jsonl"
ROW_FIELDS = ("step", "time", "samples")  # of every row, besides its metrics


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """All rows of a stage folder; a last line that was cut off by a kill is left out."""
    path = folder / NAME
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class MetricsLedger:
    """Appends rows to a stage's metrics file.

    Rows beyond the step it resumes from are dropped first, all of them if it starts anew; `kept` has the others.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        self.kept = [row for row in read_metrics(folder) if row["step"] <= resume_step] if resume_step else []
        path = folder / NAME
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.kept))
        os.replace(temporary, path)
        self._file = path.open("a", buffering=1)

    def append(self, step: int, slots: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "time": time.time(), "samples": slots, **metrics}) + "\n")

    def close(self) -> None:
        self._file.close()
