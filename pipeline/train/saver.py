"""Saving in the background of the training loop: the loop waits at most for a copy of the state, and only when it is
about to change the state. A thread copies, hashes, writes and commits, one checkpoint at a time.
"""

from __future__ import annotations

import datetime
import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from pipeline.checkpoints.manifest import FileRecord, Manifest, MeterState, commit_manifest
from pipeline.checkpoints.retention import Retention, prune, sweep
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.shard_file import SUFFIX, Span, write_shard
from pipeline.checkpoints.storage import open_storage, storage_error
from pipeline.errors import CheckpointError
from pipeline.train.job import TrainJob
from pipeline.train.state import TrainState
from pipeline.train.streams import copies_of

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
ATTEMPT = "attempt"
LONGEST_SAVE = datetime.timedelta(hours=24)


@dataclass(frozen=True)
class Moment:
    """The position of a run when it is saved."""

    step: int
    metrics: dict[str, float]  # of exactly this state
    window: MeterState


class Saver:
    """Commits the states of one run. Every rank must create it and call `begin_collective` and `finish` alike.

    A failed save raises `CheckpointError` on every rank at the next `check`, `begin_collective` or `finish`; earlier
    checkpoints are unaffected. While the loop waits for a save, `beat` is called as a sign of life whenever the save
    makes progress.
    """

    def __init__(self, state: TrainState, job: TrainJob, beat: Callable[[], None]) -> None:
        self._state, self._job, self._beat = state, job, beat
        self._storage = open_storage(job.checkpoints)
        self._retention = Retention(job.stage.checkpoint.keep_last, job.keep_steps, job.stage.best_by)
        # Its own group, as the loop runs other collectives while the thread gathers the records of written files.
        self._group: Any = dist.new_group(backend="gloo", timeout=LONGEST_SAVE)
        self._copies = copies_of(state.engine.device)
        self._staging: dict[str, Tensor] = {}
        self._copied = threading.Event()
        self._copied.set()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._progress = 0  # bytes written
        self._stall_s = 0.0

    def begin_collective(self, step: int, metrics: Mapping[str, float], window: MeterState) -> None:
        """Begin to commit the current state, after `step` steps. Waits until the previous checkpoint is done.

        `metrics` come from a validation of exactly this state and are empty if there was none; `window` is this rank's
        window of the steps since the last report.
        """
        self.finish()
        layout, tensors = self._state.parts()
        self._copied.clear()
        self._thread = threading.Thread(
            target=self._save,
            args=(Moment(step, dict(metrics), window), layout, tensors, self._copies.moment()),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()

    def wait_copied(self) -> None:
        """Wait until the state may change."""
        if not self._copied.is_set():
            began = time.perf_counter()
            self._copied.wait()
            self._stall_s += time.perf_counter() - began

    def take_stall_s(self) -> float:
        """Seconds that the training loop has waited for saves since the last call."""
        stall_s, self._stall_s = self._stall_s, 0.0
        return stall_s

    def check(self) -> None:
        """Raise the error of a failed save, if any."""
        if self._failure is not None:
            raise self._failure

    @property
    def is_done(self) -> bool:
        """Whether this rank has no save in progress."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> None:
        """Wait until the checkpoint in progress, if any, is committed."""
        if self._thread is not None:
            began, seen = time.perf_counter(), -1
            while self._thread.is_alive():
                self._thread.join(timeout=1.0)
                if self._progress != seen:
                    seen = self._progress
                    self._beat()
            self._thread = None
            self._stall_s += time.perf_counter() - began
        self.check()

    def _save(
        self,
        moment: Moment,
        layout: list[list[Span]],
        tensors: dict[str, Tensor],
        ready: Any,
    ) -> None:
        began = time.perf_counter()
        try:
            try:
                self._copies.enter_thread()
                tensors = self._copy(tensors, ready)
            finally:
                self._copied.set()
            self._commit_collective(moment, layout, tensors)
            logger.info("committed step %d in %.1f s", moment.step, time.perf_counter() - began)
        except Exception as error:  # every error must reach the loop
            self._failure = error

    def _copy(self, tensors: Mapping[str, Tensor], ready: Any) -> dict[str, Tensor]:
        """Copies of the tensors in host memory that is reused across saves."""
        if self._staging.keys() != tensors.keys():
            self._staging = {name: self._copies.host_memory(tensor) for name, tensor in tensors.items()}
        self._copies.to_host(tensors, self._staging, after=ready)
        return self._staging

    def _commit_collective(
        self, moment: Moment, layout: Sequence[Sequence[Span]], tensors: Mapping[str, Tensor]
    ) -> None:
        """Write this rank's file; once all ranks have written, rank 0 commits. All ranks raise if any failed."""
        folder, rank, world_size = step_folder(moment.step), dist.get_rank(), dist.get_world_size()
        name = f"rank-{rank:05d}-of-{world_size:05d}.{self._job.attempt}{SUFFIX}"  # unique to this attempt
        mine = self._attempt(lambda: self._write(f"{folder}/{name}", layout, tensors))
        gathered = [(mine, moment.window.sums)] * world_size
        dist.all_gather_object(gathered, gathered[0], group=self._group)
        failures = [result for result, _ in gathered if isinstance(result, CheckpointError)]
        if rank == 0 and not failures:
            files = [result for result, _ in gathered if isinstance(result, FileRecord)]
            sums = [row for _, rows in gathered for row in rows]
            failed = self._attempt(lambda: self._commit(folder, moment, files, sums))
            failures = [failed] if failed else []
        outcome: list[CheckpointError | None] = [failures[0] if failures else None]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[0] is not None:
            raise outcome[0]

    def _attempt(self, write: Callable[[], Result]) -> Result | CheckpointError:
        """The result of `write`, or the error that made it fail."""
        try:
            return write()
        except CheckpointError as error:
            return error
        except Exception as error:  # each store has its own error types
            logger.exception("a checkpoint could not be written")
            reason = str(error) or type(error).__name__
            return storage_error(self._storage, error) or CheckpointError(
                f"{self._storage.root} could not be written to ({reason}); the same command resumes from the last "
                "committed one"
            )

    def _write(self, path: str, layout: Sequence[Sequence[Span]], tensors: Mapping[str, Tensor]) -> FileRecord:
        needed, free = sum(tensor.nbytes for tensor in tensors.values()), self._storage.free_bytes()
        if free is not None and free < needed:
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free, {needed:,} are needed")
        return write_shard(self._storage, path, layout, tensors, self._advance)

    def _advance(self, size: int) -> None:
        self._progress += size

    def _commit(self, folder: str, moment: Moment, files: list[FileRecord], sums: list[list[float]]) -> None:
        """Rank 0's part of a commit, once every file is durable."""
        job = self._job
        require_current_attempt(job)
        manifest = Manifest(
            step=moment.step,
            slots=moment.step * job.stage.global_batch_size,
            world_size=dist.get_world_size(),
            zero_stage=self._state.engine.zero_stage,
            digest=job.digest,
            spec=job.spec.to_dict(),
            shapes=self._state.shapes,
            files=files,
            metrics=moment.metrics,
            window=replace(moment.window, sums=sums),
            run_ids=job.run_ids,
        )
        commit_manifest(self._storage, folder, manifest)
        self._advance(1)
        sweep(self._storage, folder, manifest)
        self._advance(1)
        prune(self._storage, self._retention, manifest)


def require_current_attempt(job: TrainJob) -> None:
    """Raise `CheckpointError` if another driver has since restarted this stage."""
    if (job.folder / ATTEMPT).read_text() != job.attempt:
        raise CheckpointError(f"{job.folder}: a newer attempt has taken over this stage; this one ends")
