"""How long a request to an MLflow server may take, so that a server that has fallen silent does not hold up a run.

MLflow's client reads the seconds from a variable of this process before each request. One that the user has set stays.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
FIRST_ANSWER_S = 5  # of a server that has not answered yet, or not the last time
ANSWER_S = 20
UPLOAD_BYTES_PER_S = 2_000_000  # at least: a server answers an upload once it has forwarded the file to its store


class Patience:
    """The time that this process's MLflow clients wait for each answer; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent = True
        self._uploads: list[int] = []  # seconds that each upload under way may take
        self._set: str | None = None  # the variable's value, if it is ours

    def heard(self) -> None:
        """The server has answered."""
        self._change(silent=False)

    def not_heard(self) -> None:
        """The server has not answered, or has yet to answer for the first time."""
        self._change(silent=True)

    @contextmanager
    def uploading(self, path: Path) -> Iterator[None]:
        """Within this context requests may take as long as uploading a file, or the largest of a folder."""
        files = path.rglob("*") if path.is_dir() else [path]
        seconds = max((file.stat().st_size for file in files if file.is_file()), default=0) // UPLOAD_BYTES_PER_S
        self._uploads.append(seconds)
        try:
            self._change(self._silent)
            yield
        finally:
            self._uploads.remove(seconds)
            self._change(self._silent)

    def _change(self, silent: bool) -> None:
        with self._lock:
            self._silent = silent
            if os.environ.get(VARIABLE) == self._set:
                self._set = str((FIRST_ANSWER_S if silent else ANSWER_S) + max(self._uploads, default=0))
                os.environ[VARIABLE] = self._set


patience = Patience()  # one, as the variable is the process's
