"""Loader workers: processes that write samples directly into the batch that the rank will use.

A batch's views and targets lie in memory shared by all workers of a rank (anonymous files, which neither fill /dev/shm
nor leave anything behind after a kill). The rank assigns steps to buffers; each worker decodes into its own rows; only
keys and targets of unknown size come back through the pipe. The rank's tensors use the buffer itself without a copy,
and the buffer is free again once they are released.

Workers are processes, not threads, because tar, header and label handling hold the interpreter lock. They are forked
from a fork server: a rank may hold CUDA state and threads of Ray and gloo, which do not survive a fork of the rank
itself, and a server with preloaded imports starts each worker in milliseconds, while `spawn` repeats the imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import pickle
import signal
import sys
import types
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
from pipeline.stream.batch import Batch, assemble
from pipeline.stream.batch_plan import BatchPlan
from pipeline.stream.rows import WrittenRows
from pipeline.stream.worker_process import Buffer, BytesRead, Failure, work

BATCHES_AHEAD = 2  # maximum number of steps by which each worker is ahead of the rank
ROUND_BYTES = 1 << 20  # buffers are rounded up to whole MiB, so that slightly different sizes can share them
EXIT_S = 5.0


class WorkerPool:
    """The workers of one rank, which start immediately; `batches` yields their output. Stop them with `close`."""

    def __init__(self, plan: BatchPlan, workers: int, bytes_read: BytesRead) -> None:
        self._plan, self._workers = plan, workers
        multiprocessing.forkserver.set_forkserver_preload([work.__module__, *modules_to_preload(plan)])
        context = multiprocessing.get_context("forkserver")
        pickled = pickle.dumps(plan)  # so that a worker unpickles it where errors are reported
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._free: deque[Buffer] = deque()
        self._numbers = count()
        for worker in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(pickled, worker, workers, theirs, bytes_read), daemon=True)
            with without_main():
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def batches(self) -> Generator[Batch, None, None]:
        """The batches of all steps in order, in shared memory."""
        plan = self._plan
        ahead = BATCHES_AHEAD * self._workers // max(len(plan.workers_of(plan.first, self._workers)), 1)
        asked: deque[tuple[int, Buffer]] = deque()
        unasked = steps_of(plan)
        while True:
            while len(asked) <= ahead and (step := next(unasked, None)) is not None:
                asked.append((step, self._request(step)))
            if not asked:
                return
            step, buffer = asked.popleft()
            written = [self._receive(worker) for worker in plan.workers_of(step, self._workers)]
            yield assemble(self._lend(buffer), plan.layout(step), written, step)

    def close(self) -> None:
        """Stop the workers, at the latest after the batch in progress."""
        for pipe in self._pipes:
            pipe.close()  # tells the worker to exit
        for process in self._processes:
            process.join(EXIT_S)
            if process.is_alive():
                process.kill()
                process.join()
        for buffer in self._free:
            buffer.close_handle()
        self._free.clear()

    def _request(self, step: int) -> Buffer:
        """Request a step from the workers, in a free buffer or else a new one."""
        size = -(-max(self._plan.layout(step).bytes, 1) // ROUND_BYTES) * ROUND_BYTES
        buffer = self._free.popleft() if self._free else None
        if buffer is not None and buffer.size < size:
            buffer.close_handle()
            self._broadcast(("forget", buffer.number))
            buffer = None
        if buffer is None:
            buffer = Buffer(next(self._numbers), size)
            self._broadcast(("buffer", buffer.number, size), buffer.handle)
        for worker in self._plan.workers_of(step, self._workers):
            self._send(worker, ("step", step, buffer.number))
        return buffer

    def _lend(self, buffer: Buffer) -> np.ndarray:
        """The buffer's memory; the buffer becomes free when its last array is released."""
        memory = buffer.memory()
        weakref.finalize(memory, self._free.append, buffer).atexit = False  # every array in it keeps it alive
        return memory

    def _broadcast(self, message: tuple[Any, ...], handle: int | None = None) -> None:
        for worker in range(self._workers):
            self._send(worker, message, handle)

    def _send(self, worker: int, message: tuple[Any, ...], handle: int | None = None) -> None:
        with contextlib.suppress(ConnectionError):  # the worker has exited: `_receive` reads what it left
            self._pipes[worker].send(message)
            if handle is not None:
                send_handle(self._pipes[worker], handle, self._processes[worker].pid)

    def _receive(self, worker: int) -> WrittenRows:
        try:
            answer = self._pipes[worker].recv()
        except (EOFError, ConnectionError) as error:
            self._processes[worker].join(EXIT_S)
            raise DataError(death_message(self._processes[worker].exitcode)) from error
        if isinstance(answer, Failure):
            raise answer.error from RuntimeError(f"in a loader worker:\n{answer.stack}")
        return answer


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hides the program's main module, which workers would run again: they need nothing of it.

    It is Ray's in a rank, and the user's in a training loop of their own, guarded by `__name__` or not.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def modules_to_preload(plan: BatchPlan) -> list[str]:
    """Modules to preload for the workers: torch resizes colour images, see `images.load.resize`."""
    return ["torch"] if plan.channels > 1 else []


def death_message(code: int | None) -> str:
    """The message for a loader worker that ended without reporting an error."""
    if code == -signal.SIGKILL:
        return "a loader worker was killed, probably because memory ran out; lower data.loader_workers or data.window"
    how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit status {code}"
    return f"a loader worker ended {how}; its output is in its rank's log, in the stage's folder `logs`"


def batches_in_this_thread(plan: BatchPlan, bytes_read: BytesRead) -> Generator[Batch, None, None]:
    """Like `WorkerPool.batches`, but without workers."""
    plan.progress = partial(bytes_read.add, 0)
    writer = plan.row_writer(0, 1)
    try:
        for step in steps_of(plan):
            layout = plan.layout(step)
            memory = np.empty(layout.bytes, np.uint8)
            yield assemble(memory, layout, [writer.write(step, memory)], step)
    finally:
        writer.close()


def steps_of(plan: BatchPlan) -> Iterator[int]:
    return iter(count(plan.first) if plan.stop is None else range(plan.first, plan.stop))
