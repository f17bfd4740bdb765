"""The loaders that the trainer sees: batches of a rank, made by worker processes or by a thread.

Workers are processes, not threads, as tar, header and label handling hold the interpreter lock. They are forked from a
fork server: a rank may hold CUDA, Ray's and gloo's threads, none of which survive a fork of the rank itself, and a
server that has imported this module once starts each worker in milliseconds where `spawn` imports torch anew.
"""

from __future__ import annotations

import logging
import multiprocessing.forkserver
import pickle
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from pipeline.config.schema import DataConfig, DatasetConfig
from pipeline.errors import DataError, PipelineError
from pipeline.shards.index import DatasetIndex
from pipeline.stream.augment import Size
from pipeline.stream.batch import Batch, Part, merge
from pipeline.stream.order import Order, check_split
from pipeline.stream.parts import EvalParts, Parts, TrainParts
from pipeline.stream.prefetch import Prefetcher
from pipeline.stream.quarantine import load_excluded

log = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # in each worker, and again merged in the rank
START_METHOD = "forkserver"


class TrainLoader:
    """An endless iterator of `Batch`, one per step, from `start_slot` on. Use it as a context manager, or `close` it.

    A batch holds the slots of the rank's lanes among the step's `global_batch_size`; all ranks' batches together depend
    on the seed and the slots alone. `samples_per_epoch` are those of all ranks.

    Args:
        size_at: (height, width) of a step; picklable if there are loader workers, such as a `functools.partial` of
            `resolution.size_at`.
        start_slot: slots consumed so far, which is all there is to resume.
        quarantine_path: manifest of bad samples; workers write `NAME.rankR-workerK.jsonl` beside it.
        pin_memory: page-locked images, for copies to the current CUDA device that overlap the computation.

    Raises:
        DataError: here if the data cannot be split into the lanes or the lanes among the ranks, or `data.exclude` is no
            manifest; on iteration if shards cannot be read, a label is outside the classes, or too many samples are
            bad.
    """

    def __init__(
        self,
        index: DatasetIndex,
        dataset: DatasetConfig,
        data: DataConfig,
        *,
        channels: int,
        num_classes: int,
        seed: int,
        rank: int,
        world_size: int,
        global_batch_size: int,
        size_at: Callable[[int], Size],
        start_slot: int = 0,
        quarantine_path: Path | None = None,
        pin_memory: bool = False,
    ) -> None:
        check_split(data.lanes, world_size)
        excluded = load_excluded(data.exclude, index) if data.exclude else {}
        self.order = Order(index.counts, lanes=data.lanes, window=data.window, seed=seed, excluded=excluded)
        self.samples_per_epoch = self.order.epoch_slots
        if rank == 0:
            log.info(
                "%d samples in %d lanes; an epoch leaves out %d, others each time; %d excluded by data.exclude",
                *(self.order.num_samples, data.lanes, self.order.left_out, index.num_samples - self.order.num_samples),
            )
        parts = TrainParts(
            index=index,
            dataset=dataset,
            channels=channels,
            num_classes=num_classes,
            rank=rank,
            world_size=world_size,
            quarantine_path=quarantine_path,
            order=self.order,
            augment=data.augment,
            global_batch_size=global_batch_size,
            size_at=size_at,
            start_slot=start_slot,
        )
        workers = min(data.loader_workers, data.lanes // world_size)  # one without a lane would idle
        self._batches = prefetch(batches_of(parts, workers, max(workers, 1), pin_memory), pin_memory)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and the thread, after at most the batch under way."""
        self._batches.close()


class EvalLoader:
    """Each sample of the data set exactly once over all ranks, at one size, with nothing drawn; may be iterated again.

    Every rank yields the same number of batches (`len`) of the same size, filled up with samples of weight 0 and slot
    -1; other slots are the samples' positions in the data set. Bad samples are black, at weight 0.

    Raises:
        DataError: on iteration, as `TrainLoader`.
    """

    def __init__(
        self,
        index: DatasetIndex,
        dataset: DatasetConfig,
        *,
        channels: int,
        num_classes: int,
        size: Size,
        rank: int,
        world_size: int,
        batch_size: int,
        loader_workers: int,
        pin_memory: bool = False,
        quarantine_path: Path | None = None,
    ) -> None:
        self._parts = EvalParts(
            index=index,
            dataset=dataset,
            channels=channels,
            num_classes=num_classes,
            rank=rank,
            world_size=world_size,
            quarantine_path=quarantine_path,
            batch_size=batch_size,
            size=size,
        )
        self._workers, self._pin_memory = min(loader_workers, self._parts.num_batches), pin_memory

    def __len__(self) -> int:
        return self._parts.num_batches

    def __iter__(self) -> Iterator[Batch]:
        seen = 0
        with prefetch(batches_of(self._parts, self._workers, 1, self._pin_memory), self._pin_memory) as batches:
            for batch in batches:
                seen += int((batch.slots >= 0).sum())
                yield batch
        assert seen == self._parts.stop - self._parts.start, f"{seen} samples seen of {self._parts}"


def prefetch(batches: Generator[Batch, None, None], pin_memory: bool) -> Prefetcher[Batch]:
    """Keep batches ready in a thread, which must stand on the rank's device to lock pages for it."""
    if not pin_memory:
        return Prefetcher(batches, BATCHES_AHEAD)
    device = torch.cuda.current_device()
    return Prefetcher(batches, BATCHES_AHEAD, prepare=lambda: torch.cuda.set_device(device))


def batches_of(dataset: Parts, workers: int, parts_per_batch: int, pin_memory: bool) -> Generator[Batch, None, None]:
    """Merge every `parts_per_batch` parts that the workers yield, in turn, into a batch."""
    parts: list[Part] = []
    for part in parts_of(dataset, workers):
        if isinstance(part, PipelineError):
            raise part
        parts.append(part)
        if len(parts) == parts_per_batch:
            yield merge(parts, pin_memory=pin_memory)
            parts.clear()


def parts_of(dataset: Parts, workers: int) -> Generator[Part | PipelineError, None, None]:
    """The parts of all workers in turn; without workers, made in this thread."""
    if workers == 0:
        yield from dataset
        return
    assert is_picklable(dataset), "size_at must be picklable where there are loader workers: a functools.partial, say"
    multiprocessing.forkserver.set_forkserver_preload([__name__])
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=as_it_is,
        prefetch_factor=BATCHES_AHEAD,
        multiprocessing_context=START_METHOD,
        worker_init_fn=set_up_worker,
        generator=torch.Generator(),  # else DataLoader draws from the generator of the rank's model
    )
    try:
        yield from loader
    except (RuntimeError, OSError, EOFError) as error:
        # What a worker raises arrives as "Caught ..."; a dead one is told by DataLoader or by its broken pipe.
        if str(error).startswith("DataLoader worker") or isinstance(error, (ConnectionError, EOFError)):
            reason = f"a loader worker died ({error or type(error).__name__})"
            raise DataError(f"{reason}; if memory ran out, lower data.loader_workers or data.window") from error
        raise


def set_up_worker(_: int) -> None:
    """One thread per worker, and Ctrl-C is for the rank to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def as_it_is(part: Any) -> Any:
    return part


def is_picklable(value: object) -> bool:
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True
