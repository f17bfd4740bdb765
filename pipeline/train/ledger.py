"""`metrics.jsonl`: one row per report, with no step repeated."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pipeline.files import write_whole

NAME = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """All rows of a stage folder, without a last line that was truncated by a kill."""
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


class LedgerTail:
    """Follows a file of rows, by default a stage's metrics, as it grows; restarts from its beginning if replaced."""

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self._path = folder / name
        self._file = self._position = 0

    def new_rows(self) -> list[dict[str, float]]:
        """The complete rows added since the last call."""
        try:
            with self._path.open("rb") as file:
                if self._file != (number := os.fstat(file.fileno()).st_ino):
                    self._file, self._position = number, 0
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class MetricsLedger:
    """Appends rows to a stage's metrics file.

    Drops rows beyond the step that the stage resumes from first; all rows if it starts from scratch.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        kept = [row for row in read_metrics(folder) if row["step"] <= resume_step] if resume_step else []
        path = folder / NAME
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_whole(path, lambda draft: draft.write_text(text))
        self._file = path.open("a", buffering=1)

    def append(self, step: int, slots: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "time": time.time(), "samples": slots, **metrics}) + "\n")

    def sync(self) -> None:
        """Flush all rows to disk, so that no checkpoint outlives the rows before it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
