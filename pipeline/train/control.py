"""Events around a run that all ranks must react to at the same step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pipeline.errors import Interrupted
from pipeline.train.job import INTERRUPT, RESIZE, STOP, RankContext, TrainJob, WorkersChange, stage_id

LOOK_EVERY_S = 1.0
ASK_EVERY_S = 5.0  # for nodes about to be taken away: this queries the cluster, not this process
MOST_STEPS = 10_000
SAVE, LEAVE_INTERRUPTED, LEAVE_RESIZED, ASK = 1, 2, 4, 8  # bits of the word that rank 0 broadcasts


@dataclass(frozen=True)
class Answer:
    """Whether to save now, and the exception to leave with afterwards, if any."""

    save: bool
    leave: Interrupted | None


class Control:
    """Rank 0 checks the clock and the driver's requests; every rank learns the outcome in the same step.

    Since each check costs a collective, rank 0 also decides how many steps to wait until the next one. The clock is
    monotonic because the wall clock may jump.
    """

    def __init__(self, job: TrainJob, context: RankContext, device: torch.device) -> None:
        self._job, self._context, self._device = job, context, device
        minutes = job.stage.checkpoint.every_minutes
        self._save_every_s = float("inf") if minutes is None else 60 * minutes
        self._saved = self._asked = self._looked = time.monotonic()
        self._looked_at_step: int | None = None
        self._next_look = 0

    def is_due(self, step: int) -> bool:
        """Whether every rank must check after this step."""
        return step >= self._next_look

    def saved(self) -> None:
        """Restart the timer for the next checkpoint; call it when a checkpoint begins."""
        self._saved = time.monotonic()

    def look_collective(self, step: int) -> Answer:
        """Returns what to do after this step."""
        word = torch.tensor(
            self._look(step) if dist.get_rank() == 0 else (0, 0), dtype=torch.int32, device=self._device
        )
        dist.broadcast(word, src=0)
        (bits, steps), name = word.tolist(), stage_id(self._job.folder)
        self._next_look = step + steps
        leaving = self._context.leaving_nodes() if bits & ASK else ()
        leave: Interrupted | None = None
        if bits & LEAVE_INTERRUPTED:
            leave = Interrupted(f"{name}: stopped on request after a commit")
        elif leaving:
            leave = WorkersChange(f"{len(leaving)} node(s) are about to be preempted")
            leave.leaving = leaving
        elif bits & LEAVE_RESIZED:
            leave = WorkersChange("there is room for more workers")
        return Answer(bool(bits & SAVE), leave)

    def _look(self, step: int) -> tuple[int, int]:
        """The word that rank 0 broadcasts, and the number of steps until the next one."""
        now, word = time.monotonic(), 0
        steps = step - self._looked_at_step if self._looked_at_step is not None else 0
        steps_per_s = steps / max(now - self._looked, 1e-3)
        self._looked, self._looked_at_step = now, step
        if now - self._saved >= self._save_every_s:
            word |= SAVE
        if now - self._asked >= ASK_EVERY_S:
            self._asked = now
            word |= ASK
        word |= {INTERRUPT: LEAVE_INTERRUPTED, RESIZE: LEAVE_RESIZED}.get(self._wish(), 0)
        return word, min(max(round(LOOK_EVERY_S * steps_per_s), 1), MOST_STEPS)

    def _wish(self) -> str:
        try:
            return (self._job.folder / STOP).read_text()
        except FileNotFoundError:
            return ""
