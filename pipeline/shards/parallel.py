"""Runs the same task on many shards in parallel processes, and shows progress."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Annotated, Protocol, TypeVar

from pipeline.cpus import usable_cpus
from pipeline.errors import DataError

T = TypeVar("T")
R = TypeVar("R")
Workers = Annotated[int | None, "processes; default: one per CPU"]

IN_FLIGHT = 4096  # tasks handed to the pool at once, so that a million shards do not queue in memory
LINE_EVERY_S = 10.0


class Mapper(Protocol):
    """`map_shards`, or what does the same elsewhere."""

    def __call__(
        self, task: Callable[[T], R], items: Sequence[T], *, label: str, workers: int | None = None, unit: str = ...
    ) -> Iterator[R]: ...


def map_shards(
    task: Callable[[T], R], items: Sequence[T], *, label: str, workers: int | None = None, unit: str = "shards"
) -> Iterator[R]:
    """Runs `task` on every item in parallel processes (default: one per usable CPU); yields results in order.

    `task` must be importable and its results picklable. Progress goes to standard error. Raises DataError if the
    system kills a process.
    """
    workers = min(workers or usable_cpus(), len(items))
    if workers <= 1:
        yield from track(map(task, items), len(items), label, unit)
        return
    # Spawn, not fork: the caller may have threads (fsspec, Ray), whose state a fork would copy mid-operation.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        batches = (items[first : first + IN_FLIGHT] for first in range(0, len(items), IN_FLIGHT))
        results = (result for batch in batches for result in pool.map(task, batch))
        try:
            yield from track(results, len(items), label, unit)
        except BrokenProcessPool:
            raise DataError(
                f"{label}: the system killed a process, perhaps for lack of memory; use fewer --workers"
            ) from None


def track(results: Iterator[R], total: int, label: str, unit: str) -> Iterator[R]:
    """Passes results through; shows a bar with rate and time left on a terminal, otherwise a line now and then."""
    if sys.stderr.isatty():
        yield from _bar(results, total, label, unit)
        return
    began = said = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if now - said >= LINE_EVERY_S:
            said = now
            rate = done / (now - began)
            left_s = (total - done) / rate
            print(f"{label}: {done:,}/{total:,} {unit}, {rate:.3g}/s, {left_s:.0f} s left", file=sys.stderr, flush=True)


def _bar(results: Iterator[R], total: int, label: str, unit: str) -> Iterator[R]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{unit}, {task.speed:.3g}/s" if task.speed else unit)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        for result in results:
            yield result
            progress.advance(task)
