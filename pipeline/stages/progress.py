"""What users see while stages run: bars on a terminal, an occasional line in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from pipeline.metrics.schema import Schema
from pipeline.train.ledger import LedgerTail
from pipeline.train.progress import NAME as PROGRESS
from pipeline.train.progress import Reached, read_progress

LINE_EVERY_S = 15.0
SPEED, TOKENS = "speed/images_per_s", "speed/tokens_per_s"  # tokens of all views of a sample


@dataclass
class Watched:
    """A stage followed by its metrics file."""

    ledger: LedgerTail
    schema: Schema
    total_steps: int
    first_step: int
    bar: TaskID | None = None
    printed: float = float("-inf")


@dataclass
class Followed:
    """A job followed by its progress file."""

    folder: Path
    bar: TaskID | None = None
    printed: float = float("-inf")
    reached: Reached | None = None


class Progress:
    """Follows the files of running stages; `say` prints a line without tearing the bars."""

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._watched: dict[str, Watched] = {}
        self._followed: dict[str, Followed] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, message: str) -> None:
        self.console.print(message, markup=False)

    def watch(self, stage_id: str, folder: Path, schema: Schema, total_steps: int, first_step: int) -> None:
        """Follow a training stage from now on; called again on each restart."""
        self.unwatch(stage_id)
        bar = None
        if self.console.is_terminal:
            bar = self._bars.add_task(stage_id, total=total_steps, completed=first_step, numbers="starting workers")
        self._watched[stage_id] = Watched(LedgerTail(folder), schema, total_steps, first_step, bar=bar)

    def unwatch(self, stage_id: str) -> None:
        watched = self._watched.pop(stage_id, None)
        if watched and watched.bar is not None:
            self._bars.remove_task(watched.bar)

    @contextmanager
    def following(self, stage_id: str, folder: Path) -> Iterator[None]:
        """Within this context, show the progress of a job without steps from its progress file."""
        (folder / PROGRESS).unlink(missing_ok=True)  # left by an earlier start
        bar = None
        if self.console.is_terminal:
            bar = self._bars.add_task(stage_id, total=None, numbers="starting workers")
        self._followed[stage_id] = Followed(folder, bar)
        try:
            yield
        finally:
            del self._followed[stage_id]
            if bar is not None:
                self._bars.remove_task(bar)

    def poll(self) -> None:
        """Read the files again and show any news."""
        for stage_id, followed in list(self._followed.items()):
            self._show(stage_id, followed)
        for stage_id, watched in list(self._watched.items()):
            rows = [row for row in watched.ledger.new_rows() if SPEED in row and row["step"] > watched.first_step]
            if not rows:
                continue
            row = rows[-1]
            step = int(row["step"])
            measures = watched.schema.of(row, "train/").items()
            numbers = "".join(f"{watched.schema[name].words} {value:.3f}  " for name, value in measures)
            numbers += f"{row[SPEED]:,.0f} images/s  {row['train/image_size']:.0f} px"
            if TOKENS in row:
                numbers += f"  {row[TOKENS]:,.0f} tokens/s"
            if row["train/skipped_steps"]:
                numbers += f"  {row['train/skipped_steps']:.0f} steps skipped, not finite"
            if watched.bar is not None:
                self._bars.update(watched.bar, completed=step, numbers=numbers)
            elif time.monotonic() - watched.printed >= LINE_EVERY_S:
                watched.printed = time.monotonic()
                left = (watched.total_steps - step) * row["speed/step_time_s"]
                self.say(f"{stage_id}: step {step}/{watched.total_steps}  {numbers}  about {clock(left)} left")

    def _show(self, stage_id: str, followed: Followed) -> None:
        reached = read_progress(followed.folder)
        if reached is None or reached == followed.reached:
            return
        followed.reached = reached
        if followed.bar is not None:
            self._bars.update(followed.bar, completed=reached.done, total=reached.total or None, numbers=reached.words)
        elif time.monotonic() - followed.printed >= LINE_EVERY_S:
            followed.printed = time.monotonic()
            share = f", {reached.done / reached.total:.0%}" if reached.total else ""
            self.say(f"{stage_id}: {reached.words}{share}")


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
