"""The trainer's data loaders: batches of a rank, made by worker processes or by a thread."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.config.data import DataConfig, PlainConfig
from pipeline.config.views import ViewGroup
from pipeline.images.geometry import Size
from pipeline.stream.batch import Batch
from pipeline.stream.batch_plan import BatchPlan, EvalBatchPlan, TrainBatchPlan
from pipeline.stream.order import check_lanes
from pipeline.stream.prefetch import Prefetcher
from pipeline.stream.source import Source, build_mixture
from pipeline.stream.worker_process import BytesRead
from pipeline.stream.workers import WorkerPool, batches_in_this_thread

log = logging.getLogger(__name__)

BATCHES_READY = 2  # in the rank, in addition to those that the workers make ahead


class TrainLoader:
    """An endless iterator of `Batch`, one per step, from `start_slot` on. Use it as a context manager, or `close` it.

    A batch holds the slots of the rank's lanes among the step's `global_batch_size`; the batches of all ranks together
    depend only on the seed and the slots. `samples_per_epoch` counts the samples of all ranks.

    Args:
        sources: a single data set, or those of a mixture.
        data: lanes, window, workers and excluded samples; everything else is in `sources`.
        targets: the target kinds that every source must have in `Source.targets`.
        views: the groups of views of each sample; targets follow the first view of the first group.
        size_at: step -> (height, width); must be picklable if there are loader workers, such as a `functools.partial`
            of `resolution.size_at`.
        start_slot: slots consumed so far, which is the only state needed to resume.
        quarantine_path: manifest of bad samples; workers write `NAME.rankR-workerK.jsonl` next to it.

    Raises:
        DataError: on construction if the data cannot be split into the lanes or the lanes among the ranks, or
            `data.exclude` is not a manifest; on iteration if shards cannot be read, a label is outside the classes, or
            too many samples are bad.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        data: DataConfig,
        *,
        channels: int,
        targets: Sequence[str],
        views: Mapping[str, ViewGroup],
        seed: int,
        rank: int,
        world_size: int,
        global_batch_size: int,
        size_at: Callable[[int], Size],
        start_slot: int = 0,
        quarantine_path: Path | None = None,
    ) -> None:
        check_lanes(data.lanes, world_size)
        mixture = build_mixture(sources, data, seed)
        self.samples_per_epoch = mixture.epoch_slots
        for source, order in zip(sources, mixture.orders, strict=True):
            if rank == 0:
                excluded = source.index.num_samples - order.num_samples
                log.info(
                    "%s: %d samples in %d lanes; each epoch leaves out %d different ones; %d excluded by data.exclude",
                    *(source.name, order.num_samples, data.lanes, order.left_out, excluded),
                )
        plan = TrainBatchPlan(
            sources=sources,
            mixture=mixture,
            channels=channels,
            targets=targets,
            views=views,
            rank=rank,
            world_size=world_size,
            quarantine_path=quarantine_path,
            global_batch_size=global_batch_size,
            size_at=size_at,
            start_slot=start_slot,
        )
        workers = min(data.loader_workers, data.lanes // world_size)  # a worker without a lane would idle
        self._bytes_read = BytesRead(workers)
        self._batches = Prefetcher(batches_of(plan, workers, self._bytes_read), BATCHES_READY)

    def bytes_read(self) -> int:
        """Bytes read from the shards so far; grows while the trainer waits for the next batch."""
        return self._bytes_read.total()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and the thread, at the latest after the batch in progress."""
        self._batches.close()


class EvalLoader:
    """Each sample of the data set exactly once over all ranks, at one size, without random draws; can be re-iterated.

    Every rank yields the same number of batches (`len`) of the same size, padded with samples of weight 0 and slot -1;
    other slots are the samples' positions in the data set. Bad samples are black, with weight 0. Batches contain only
    the first group of views, with one view of each sample.

    Raises:
        DataError: on iteration, as for `TrainLoader`.
    """

    def __init__(
        self,
        source: Source,
        *,
        channels: int,
        targets: Sequence[str],
        views: Mapping[str, ViewGroup],
        size: Size,
        plain: PlainConfig,
        rank: int,
        world_size: int,
        batch_size: int,
        loader_workers: int,
        quarantine_path: Path | None = None,
    ) -> None:
        self._plan = EvalBatchPlan(
            source=source,
            channels=channels,
            targets=targets,
            views=views,
            rank=rank,
            world_size=world_size,
            quarantine_path=quarantine_path,
            batch_size=batch_size,
            size=size,
            plain=plain,
        )
        self._workers = min(loader_workers, len(self))
        self._bytes_read = BytesRead(self._workers)

    def bytes_read(self) -> int:
        """Bytes read from the shards so far; grows while the trainer waits for the next batch."""
        return self._bytes_read.total()

    def __len__(self) -> int:
        return self._plan.num_batches

    def __iter__(self) -> Iterator[Batch]:
        seen, (start, stop) = 0, self._plan.bounds
        with Prefetcher(batches_of(self._plan, self._workers, self._bytes_read), BATCHES_READY) as batches:
            for batch in batches:
                seen += int((batch.slots >= 0).sum())
                yield batch
        assert seen == stop - start, f"{seen} samples seen of {start} to {stop}"


def batches_of(plan: BatchPlan, workers: int, bytes_read: BytesRead) -> Generator[Batch, None, None]:
    """The batches of a rank; without workers, they are made in this thread."""
    if workers == 0:
        yield from batches_in_this_thread(plan, bytes_read)
        return
    assert is_picklable(plan), "size_at must be picklable where there are loader workers: a functools.partial, say"
    pool = WorkerPool(plan, workers, bytes_read)
    try:
        yield from pool.batches()
    finally:
        pool.close()


def is_picklable(value: object) -> bool:
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True
