"""What runs in a loader worker: an endless row of training parts, or the batches of an evaluation.

A PipelineError is handed over as the last item instead of raised: DataLoader would wrap it in a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.config.schema import AugmentConfig, DatasetConfig
from pipeline.errors import PipelineError
from pipeline.shards.index import DatasetIndex
from pipeline.stream.augment import Size
from pipeline.stream.batch import Part, make_part
from pipeline.stream.order import Order, share_of_lanes, share_of_step
from pipeline.stream.quarantine import Quarantine
from pipeline.stream.read import Reader, WindowReader
from pipeline.stream.sample import PADDING_SLOT, Members, PlainSamples, TrainSamples


@dataclass(kw_only=True, eq=False)
class Parts(IterableDataset[Part | PipelineError]):
    """The parts of one loader worker; subclasses say which. It is pickled to the workers."""

    index: DatasetIndex
    dataset: DatasetConfig
    channels: int
    num_classes: int
    rank: int
    world_size: int
    quarantine_path: Path | None

    def __iter__(self) -> Iterator[Part | PipelineError]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        try:
            yield from self.parts(worker, workers, Quarantine(self.quarantine_path, f"rank{self.rank}-worker{worker}"))
        except PipelineError as error:
            yield error

    def parts(self, worker: int, workers: int, quarantine: Quarantine) -> Iterator[Part]:
        raise NotImplementedError


@dataclass(kw_only=True, eq=False)
class TrainParts(Parts):
    """Per step, the part of this worker's lanes."""

    order: Order
    augment: AugmentConfig
    global_batch_size: int
    size_at: Callable[[int], Size]
    start_slot: int

    def parts(self, worker: int, workers: int, quarantine: Quarantine) -> Iterator[Part]:
        share = {"rank": self.rank, "world_size": self.world_size, "worker": worker, "workers": workers}
        order = self.order
        lanes = share_of_lanes(order.lanes, **share)
        windows = WindowReader(Reader(self.index), order)
        samples = TrainSamples(
            order,
            windows,
            Members(self.dataset, self.num_classes),
            self.augment,
            quarantine,
            channels=self.channels,
            num_lanes=len(lanes),
        )
        try:
            windows.start(self.first_windows(lanes))
            step, slot = self.start_slot // self.global_batch_size, self.start_slot
            while True:
                size = self.size_at(step)
                slots = share_of_step(slot, self.global_batch_size, order.lanes, **share).tolist()
                yield make_part(slots, partial(samples.make, size=size), self.channels, size, step)
                step, slot = step + 1, slot + self.global_batch_size
        finally:
            windows.close()

    def first_windows(self, lanes: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Epoch, lane and number of the window in which each lane's first sample lies."""
        order = self.order
        place = order.place(self.start_slot + (lanes - self.start_slot) % order.lanes)
        numbers = order.window_of(place.lane, place.position)
        return zip(place.epoch.tolist(), place.lane.tolist(), numbers.tolist(), strict=True)


@dataclass(kw_only=True, eq=False)
class EvalParts(Parts):
    """Whole batches, in turn with the other workers: a rank's stretch of the samples, in the order of the shards."""

    batch_size: int
    size: Size

    def __post_init__(self) -> None:
        every = self.index.num_samples
        most = -(-every // self.world_size)
        self.batch_size = max(min(self.batch_size, most), 1)
        self.num_batches = -(-most // self.batch_size)
        self.start, self.stop = every * self.rank // self.world_size, every * (self.rank + 1) // self.world_size

    def parts(self, worker: int, workers: int, quarantine: Quarantine) -> Iterator[Part]:
        reader = Reader(self.index)
        plain = PlainSamples(
            Members(self.dataset, self.num_classes), quarantine, channels=self.channels, size=self.size
        )
        ends = np.cumsum(self.index.counts)
        for batch in range(worker, self.num_batches, workers):
            start = min(self.start + batch * self.batch_size, self.stop)
            positions = np.arange(start, min(start + self.batch_size, self.stop))
            shards = np.searchsorted(ends, positions, side="right")
            raw = reader.read(shards, positions - (ends - self.index.counts)[shards])
            slots = positions.tolist() + [PADDING_SLOT] * (self.batch_size - len(positions))
            yield make_part(slots, partial(plain.make, raw, start), self.channels, self.size, batch)
