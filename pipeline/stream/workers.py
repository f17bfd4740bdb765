"""Loader workers: processes that write samples straight into the batch that the rank is going to use.

A batch's views and targets lie in memory that all workers of a rank share (anonymous files, so no /dev/shm fills up and
nothing is left behind by a kill). The rank says which step goes into which buffer; each worker decodes into its own
rows; what comes back through the pipe are keys, and targets whose size is not known before. The rank's tensors are the
buffer itself, and the buffer is free again when they are.

Workers are processes, not threads, as tar, header and label handling hold the interpreter lock. They are forked from a
fork server: a rank may hold CUDA, Ray's and gloo's threads, none of which survive a fork of the rank itself, and a
server that has imported what they run starts each in milliseconds, where `spawn` imports it anew.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import pickle
import signal
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.stream import worker_process
from pipeline.stream.batch import Batch, assemble
from pipeline.stream.fill import Part
from pipeline.stream.parts import Parts
from pipeline.stream.worker_process import Buffer, BytesRead, Failure, work

BATCHES_AHEAD = 2  # steps that each worker may be ahead of the rank
ROUND_BYTES = 1 << 20  # buffers grow by whole MiB, so that sizes that vary a little share them
EXIT_S = 5.0


class WorkerPool:
    """The workers of one rank, started at once; `batches` is what they make. End it with `close`."""

    def __init__(self, parts: Parts, workers: int, bytes_read: BytesRead) -> None:
        self._parts, self._workers = parts, workers
        multiprocessing.forkserver.set_forkserver_preload([worker_process.__name__, *needed_by(parts)])
        context = multiprocessing.get_context("forkserver")
        pickled = pickle.dumps(parts)  # so that a worker unpickles it where its errors are reported
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._free: deque[Buffer] = deque()
        self._numbers = count()
        for worker in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(pickled, worker, workers, theirs, bytes_read), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def batches(self) -> Generator[Batch, None, None]:
        """The batches of all steps in order, in shared memory."""
        parts = self._parts
        ahead = BATCHES_AHEAD * self._workers // max(len(parts.workers_of(parts.first, self._workers)), 1)
        asked: deque[tuple[int, Buffer]] = deque()
        unasked = steps_of(parts)
        while True:
            while len(asked) <= ahead and (step := next(unasked, None)) is not None:
                asked.append((step, self._ask(step)))
            if not asked:
                return
            step, buffer = asked.popleft()
            filled = [self._receive(worker) for worker in parts.workers_of(step, self._workers)]
            yield assemble(self._lend(buffer), parts.layout(step), filled, step)

    def close(self) -> None:
        """End the workers, after at most the batch under way."""
        for pipe in self._pipes:
            pipe.close()  # which a worker takes for the end
        for process in self._processes:
            process.join(EXIT_S)
            if process.is_alive():
                process.kill()
                process.join()
        for buffer in self._free:
            buffer.close_handle()
        self._free.clear()

    def _ask(self, step: int) -> Buffer:
        """Have a step made; in a buffer that is free, or else in a new one."""
        size = -(-max(self._parts.layout(step).bytes, 1) // ROUND_BYTES) * ROUND_BYTES
        buffer = self._free.popleft() if self._free else None
        if buffer is not None and buffer.size < size:
            buffer.close_handle()
            self._tell(("forget", buffer.number))
            buffer = None
        if buffer is None:
            buffer = Buffer(next(self._numbers), size)
            self._tell(("buffer", buffer.number, size), buffer.handle)
        for worker in self._parts.workers_of(step, self._workers):
            self._send(worker, ("step", step, buffer.number))
        return buffer

    def _lend(self, buffer: Buffer) -> np.ndarray:
        """The buffer's memory; when no array of it is left, it is free."""
        memory = buffer.memory()
        weakref.finalize(memory, self._free.append, buffer).atexit = False  # which every array in it keeps alive
        return memory

    def _tell(self, message: tuple[Any, ...], handle: int | None = None) -> None:
        for worker in range(self._workers):
            self._send(worker, message, handle)

    def _send(self, worker: int, message: tuple[Any, ...], handle: int | None = None) -> None:
        with contextlib.suppress(ConnectionError):  # of a worker that has ended: what it left is read in its turn
            self._pipes[worker].send(message)
            if handle is not None:
                send_handle(self._pipes[worker], handle, self._processes[worker].pid)

    def _receive(self, worker: int) -> Part:
        try:
            part = self._pipes[worker].recv()
        except (EOFError, ConnectionError) as error:
            self._processes[worker].join(EXIT_S)
            raise DataError(died(self._processes[worker].exitcode)) from error
        if isinstance(part, Failure):
            raise part.error from RuntimeError(f"in a loader worker:\n{part.stack}")
        return part


def needed_by(parts: Parts) -> list[str]:
    """What workers would else import one by one: torch resizes images in colour, see `images.load.resize`."""
    return ["torch"] if parts.channels > 1 else []


def died(code: int | None) -> str:
    """The message for a loader worker that ended without reporting an error."""
    if code == -signal.SIGKILL:
        return (
            "a loader worker was killed, as the system does when memory runs out; lower data.loader_workers or "
            "data.window"
        )
    how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit status {code}"
    return f"a loader worker ended {how}; what it printed is in its rank's log, in the stage's folder `logs`"


def batches_in_this_thread(parts: Parts, bytes_read: BytesRead) -> Generator[Batch, None, None]:
    """As `WorkerPool.batches`, without any worker."""
    parts.progress = partial(bytes_read.add, 0)
    filler = parts.filler(0, 1)
    try:
        for step in steps_of(parts):
            layout = parts.layout(step)
            memory = np.empty(layout.bytes, np.uint8)
            yield assemble(memory, layout, [filler.fill(step, memory)], step)
    finally:
        filler.close()


def steps_of(parts: Parts) -> Iterator[int]:
    return iter(count(parts.first) if parts.stop is None else range(parts.first, parts.stop))
