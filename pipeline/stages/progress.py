"""What a person sees while stages run: bars on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from pipeline.metrics.schema import Schema
from pipeline.train.ledger import LedgerTail

LINE_EVERY_S = 15.0
SPEED = "speed/images_per_s"


@dataclass
class Watched:
    """A stage whose metrics file is followed."""

    ledger: LedgerTail
    schema: Schema
    total_steps: int
    first_step: int
    bar: TaskID | None = None
    printed: float = float("-inf")


class Progress:
    """Follows the metrics files of running stages; `say` prints a line without tearing the bars."""

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

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, message: str) -> None:
        self.console.print(message, markup=False)

    def watch(self, stage_id: str, folder: Path, schema: Schema, total_steps: int, first_step: int) -> None:
        """Follow a training stage from now on; again, where it starts once more."""
        self.unwatch(stage_id)
        bar = None
        if self.console.is_terminal:
            bar = self._bars.add_task(stage_id, total=total_steps, completed=first_step, numbers="starting workers")
        self._watched[stage_id] = Watched(LedgerTail(folder), schema, total_steps, first_step, bar=bar)

    def unwatch(self, stage_id: str) -> None:
        watched = self._watched.pop(stage_id, None)
        if watched and watched.bar is not None:
            self._bars.remove_task(watched.bar)

    def poll(self) -> None:
        """Read the metrics files again and show what is new."""
        for stage_id, watched in list(self._watched.items()):
            rows = [row for row in watched.ledger.new_rows() if SPEED in row and row["step"] > watched.first_step]
            if not rows:
                continue
            row = rows[-1]
            step = int(row["step"])
            measures = watched.schema.of(row, "train/").items()
            numbers = "".join(f"{watched.schema[name].words} {value:.3f}  " for name, value in measures)
            numbers += f"{row[SPEED]:,.0f} images/s  {row['train/image_size']:.0f} px"
            if row["train/skipped_steps"]:
                numbers += f"  {row['train/skipped_steps']:.0f} steps skipped, not finite"
            if watched.bar is not None:
                self._bars.update(watched.bar, completed=step, numbers=numbers)
            elif time.monotonic() - watched.printed >= LINE_EVERY_S:
                watched.printed = time.monotonic()
                left = (watched.total_steps - step) * row["speed/step_time_s"]
                self.say(f"{stage_id}: step {step}/{watched.total_steps}  {numbers}  about {clock(left)} left")


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
