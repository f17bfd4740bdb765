"""Writing a checkpoint from all ranks, and committing it."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from pipeline.checkpoints.manifest import FileRecord, Manifest, payload_files, record_file, write_manifest
from pipeline.checkpoints.store import prune, step_folder
from pipeline.errors import CheckpointError
from pipeline.train.ema import ShardedEMA
from pipeline.train.engine import Engine
from pipeline.train.job import TrainJob

logger = logging.getLogger(__name__)

ATTEMPT = "attempt"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
ALMOST_FULL_BYTES = 1 << 20


def commit_collective(
    engine: Engine, ema: ShardedEMA | None, job: TrainJob, step: int, metrics: dict[str, float]
) -> None:
    """Write a checkpoint of the state after `step` steps and commit it, unless a newer attempt has taken over.

    If it fails at any point, the checkpoints committed before stay as they are.
    """
    root = job.folder / "checkpoints"
    folder = step_folder(root, step)
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed attempt left uncommitted
        folder.mkdir(parents=True)
    dist.barrier()
    engine.save_collective(folder)
    if ema:
        ema.save_collective(folder)
    dist.barrier()
    files = record_files_collective(folder)
    if dist.get_rank() == 0:
        require_current_attempt(job)
        manifest = Manifest(
            step=step,
            slots=step * job.stage.global_batch_size,
            world_size=dist.get_world_size(),
            zero_stage=engine.zero_stage,
            digest=job.digest,
            spec=job.spec.to_dict(),
            files=files,
            metrics=metrics,
        )
        write_manifest(folder, manifest)
        prune(root, job.stage.checkpoint.keep_last)
    dist.barrier()
    logger.info("committed %s: %d files, %d bytes", folder, len(files), sum(record.bytes for record in files))


def record_files_collective(folder: Path) -> list[FileRecord]:
    """Size and SHA-256 of every file of a folder, the work shared among the ranks. Same on every rank."""
    mine = [record_file(folder, path) for path in payload_files(folder)[dist.get_rank() :: dist.get_world_size()]]
    gathered: list[list[FileRecord]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, mine)
    return sorted((record for part in gathered for record in part), key=lambda record: record.path)


def require_current_attempt(job: TrainJob) -> None:
    """Raise `CheckpointError` if another driver has started this stage again since."""
    if (job.folder / ATTEMPT).read_text() != job.attempt:
        raise CheckpointError(f"{job.folder}: a newer attempt has taken over this stage; this one ends")


@contextmanager
def unwritable_as_error(root: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence; torch reports a failed write as a RuntimeError without errno."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = shutil.disk_usage(root if root.is_dir() else root.parent).free < ALMOST_FULL_BYTES
        if full or getattr(error, "errno", None) in UNWRITABLE:
            reason = "the disk is full" if full else str(error)
            raise CheckpointError(
                f"{root} cannot be written ({reason}); make room or correct the permissions and run the same command "
                "again: it goes on from the last committed checkpoint"
            ) from error
        raise
