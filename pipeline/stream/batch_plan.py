"""The work of a loader worker: which rows of which batches it writes, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from pipeline.config.data import PlainConfig
from pipeline.config.views import ViewGroup
from pipeline.images.geometry import Size
from pipeline.stream.layout import BatchLayout
from pipeline.stream.mixture import Mixture
from pipeline.stream.order import is_share, share_of_lanes, share_of_step
from pipeline.stream.quarantine import Quarantine
from pipeline.stream.read import SampleReader, WindowReader, ignore
from pipeline.stream.rows import WrittenRows, write_rows
from pipeline.stream.sample import PADDING_SLOT, EvalSampleBuilder, Sample, TrainSampleBuilder
from pipeline.stream.source import Source
from pipeline.targets.base import Field, Target

BLANK = Sample("", weight=0.0)


class RowWriter(ABC):
    """Writes one worker's rows of batches, in step order."""

    @abstractmethod
    def write(self, step: int, memory: np.ndarray) -> WrittenRows:
        """Write this worker's samples into a batch's memory, uint8 [bytes]. Raises DataError for unusable data."""

    @abstractmethod
    def close(self) -> None:
        """Stop its background work."""


@dataclass(kw_only=True, eq=False)
class BatchPlan(ABC):
    """How a rank's batches are divided among loader workers, defined by subclasses. It is pickled to the workers."""

    channels: int
    targets: Sequence[str]  # kinds
    views: Mapping[str, ViewGroup]
    rank: int
    world_size: int
    quarantine_path: Path | None
    first: int = 0  # step
    stop: int | None = None  # step, exclusive; None: endless
    progress: Callable[[int], None] = ignore  # called with the bytes of every read

    @abstractmethod
    def layout(self, step: int) -> BatchLayout:
        """Layout of the rank's batch at a step."""

    @abstractmethod
    def workers_of(self, step: int, workers: int) -> Sequence[int]:
        """The loader workers that write a step's batch."""

    @abstractmethod
    def row_writer(self, worker: int, workers: int) -> RowWriter:
        """Writes the rows of one loader worker."""

    @abstractmethod
    def used_sources(self) -> Sequence[Source]:
        """The data sets that the samples come from."""

    def targets_of(self, source: Source) -> list[Target]:
        """A data set's targets, in the order of the kinds."""
        return [source.targets[kind] for kind in self.targets]

    def layout_of(
        self, batch_size: int, size: Size, views: Mapping[str, ViewGroup], *, evaluation: bool
    ) -> BatchLayout:
        groups = {name: shape_of(group, self.channels, size) for name, group in views.items()}
        main = next(iter(views.values())).size or size  # targets belong to the first view
        fields: dict[str, Field] = {}
        for target in self.targets_of(self.used_sources()[0]):
            own = target.fields(main, evaluation=evaluation)
            assert not fields.keys() & own.keys(), f"two kinds of labels fill {fields.keys() & own.keys()}"
            fields.update(own)
        return BatchLayout(batch_size, groups, fields)

    def quarantine(self, worker: int) -> Quarantine:
        samples = {source.name: source.index.num_samples for source in self.used_sources()}
        return Quarantine(self.quarantine_path, f"rank{self.rank}-worker{worker}", samples)


def shape_of(group: ViewGroup, channels: int, size: Size) -> tuple[int, ...]:
    """Shape of a sample's views in a group: [C, H, W], or [V, C, H, W] if there are several."""
    one = channels, *(group.size or size)
    return one if group.count == 1 else (group.count, *one)


@dataclass(kw_only=True, eq=False)
class TrainBatchPlan(BatchPlan):
    """All workers share every step: each writes the slots of its lanes."""

    sources: Sequence[Source]
    mixture: Mixture
    global_batch_size: int
    size_at: Callable[[int], Size]
    start_slot: int

    def __post_init__(self) -> None:
        self.first = self.start_slot // self.global_batch_size

    def slots(self, step: int) -> np.ndarray:
        """The rank's slots at a step, ascending."""
        first = self.start_slot + (step - self.first) * self.global_batch_size
        return share_of_step(
            first, self.global_batch_size, self.mixture.lanes, rank=self.rank, world_size=self.world_size
        )

    def layout(self, step: int) -> BatchLayout:
        return self.layout_of(len(self.slots(step)), self.size_at(step), self.views, evaluation=False)

    def workers_of(self, step: int, workers: int) -> Sequence[int]:
        return range(workers)

    def used_sources(self) -> Sequence[Source]:
        return self.sources

    def row_writer(self, worker: int, workers: int) -> RowWriter:
        return TrainRowWriter(self, worker, workers)


class TrainRowWriter(RowWriter):
    """One worker's lanes of the training stream."""

    def __init__(self, plan: TrainBatchPlan, worker: int, workers: int) -> None:
        self._plan, self._mixture, self._targets = plan, plan.mixture, plan.targets_of(plan.sources[0])
        self._share = {"rank": plan.rank, "world_size": plan.world_size, "worker": worker, "workers": workers}
        lanes = share_of_lanes(plan.mixture.lanes, **self._share)
        self._windows = WindowReader(
            [SampleReader(source.index, source.config.cache, plan.progress) for source in plan.sources],
            plan.mixture.orders,
        )
        self._builder = TrainSampleBuilder(
            plan.sources,
            plan.mixture,
            self._windows,
            plan.quarantine(worker),
            channels=plan.channels,
            targets=plan.targets,
            views=[group for group in plan.views.values() for _ in range(group.count)],
            num_lanes=len(lanes),
        )
        for source, place in plan.mixture.next_turns(plan.start_slot, lanes):
            epochs, windows = place.epoch.tolist(), place.window.tolist()
            self._windows.start(zip([source] * len(lanes), epochs, lanes.tolist(), windows, strict=True))

    def write(self, step: int, memory: np.ndarray) -> WrittenRows:
        slots = self._plan.slots(step)
        rows = np.flatnonzero(is_share(slots % self._mixture.lanes, **self._share))
        slots, size = slots[rows], self._plan.size_at(step)
        spots = self._mixture.spots(slots)
        samples = (self._builder.build(slot, spot, size) for slot, spot in zip(slots.tolist(), spots, strict=True))
        return write_rows(memory, self._plan.layout(step), self._targets, rows, slots, samples)

    def close(self) -> None:
        self._windows.close()


@dataclass(kw_only=True, eq=False)
class EvalBatchPlan(BatchPlan):
    """Workers take turns writing whole batches from a rank's contiguous range of the samples, in shard order."""

    source: Source
    batch_size: int
    size: Size
    plain: PlainConfig

    def __post_init__(self) -> None:
        every = self.source.index.num_samples
        most = -(-every // self.world_size)
        self.batch_size = max(min(self.batch_size, most), 1)
        self.num_batches = self.stop = -(-most // self.batch_size)
        self.bounds = every * self.rank // self.world_size, every * (self.rank + 1) // self.world_size

    def layout(self, step: int) -> BatchLayout:
        name, group = next(iter(self.views.items()))
        return self.layout_of(self.batch_size, self.size, {name: replace(group, count=1)}, evaluation=True)

    def workers_of(self, step: int, workers: int) -> Sequence[int]:
        return [step % workers]

    def used_sources(self) -> Sequence[Source]:
        return [self.source]

    def row_writer(self, worker: int, workers: int) -> RowWriter:
        return EvalRowWriter(self, worker)


class EvalRowWriter(RowWriter):
    """Writes any batches of a rank's range of samples."""

    def __init__(self, plan: EvalBatchPlan, worker: int) -> None:
        self._plan, self._index, self._targets = plan, plan.source.index, plan.targets_of(plan.source)
        self._reader = SampleReader(self._index, plan.source.config.cache, plan.progress)
        self._ends = np.cumsum(self._index.counts)
        self._builder = EvalSampleBuilder(
            plan.source,
            plan.quarantine(worker),
            channels=plan.channels,
            targets=plan.targets,
            size=next(iter(plan.views.values())).size or plan.size,
            plain=plan.plain,
        )

    def write(self, step: int, memory: np.ndarray) -> WrittenRows:
        size, (first, stop) = self._plan.batch_size, self._plan.bounds
        start = min(first + step * size, stop)
        positions = np.arange(start, min(start + size, stop))
        shards = np.searchsorted(self._ends, positions, side="right")
        raw = self._reader.read(shards, positions - (self._ends - self._index.counts)[shards])
        padding = size - len(positions)
        slots = np.concatenate([positions, np.full(padding, PADDING_SLOT)])
        made = (self._builder.build(raw, number) for number in range(len(positions)))
        samples, layout = chain(made, repeat(BLANK, padding)), self._plan.layout(step)
        return write_rows(memory, layout, self._targets, np.arange(size), slots, samples)

    def close(self) -> None:
        """There is no background work to stop."""
