"""Loader workers: processes that write samples straight into the batch that the rank is going to use.

A batch's views and targets lie in memory that all workers of a rank share (anonymous files, so no /dev/shm fills up and
nothing is left behind by a kill). The rank says which step goes into which buffer; each worker decodes into its own
rows; what comes back through the pipe are keys, and targets whose size is not known before. The rank's tensors are the
buffer itself, and the buffer is free again when they are.

Workers are processes, not threads, as tar, header and label handling hold the interpreter lock. They are forked from a
fork server: a rank may hold CUDA, Ray's and gloo's threads, none of which survive a fork of the rank itself, and a
server that has imported this module once starts each worker in milliseconds where `spawn` imports torch anew.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.errors import DataError
from pipeline.stream.batch import Batch, Part, assemble
from pipeline.stream.parts import Parts

BATCHES_AHEAD = 2  # steps that each worker may be ahead of the rank
NICENESS = 5  # where CPUs are short, the rank's own threads go first
ROUND_BYTES = 1 << 20  # buffers grow by whole MiB, so that sizes that vary a little share them
EXIT_S = 5.0


class Buffer:
    """Memory that several processes see; `number` names it among those of a rank."""

    def __init__(self, number: int, size: int, handle: int | None = None) -> None:
        self.number, self.size = number, size
        self.handle = os.memfd_create("batch") if handle is None else handle
        if handle is None:
            os.ftruncate(self.handle, size)
        self._memory = mmap.mmap(self.handle, size)

    def memory(self) -> np.ndarray:
        """As uint8 [size]."""
        return np.frombuffer(self._memory, np.uint8)

    def close_handle(self) -> None:
        """The memory lives on for as long as an array of it does."""
        os.close(self.handle)


class BytesRead:
    """How many bytes a rank's loader workers have read, in memory that they share."""

    def __init__(self, workers: int) -> None:
        self._of_workers = multiprocessing.get_context("forkserver").RawArray("q", max(workers, 1))

    def add(self, worker: int, size: int) -> None:
        self._of_workers[worker] += size  # threads race and may lose some: only growth matters

    def total(self) -> int:
        return sum(self._of_workers)


class WorkerPool:
    """The workers of one rank, started at once; `batches` is what they make. End it with `close`."""

    def __init__(self, parts: Parts, workers: int, bytes_read: BytesRead) -> None:
        self._parts, self._workers = parts, workers
        multiprocessing.forkserver.set_forkserver_preload([__name__])
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


class Failure:
    """What made a worker end: the error itself, to be raised in its rank, and where it arose."""

    def __init__(self, error: Exception) -> None:
        self.stack = "".join(traceback.format_exception(error))
        self.error = error if survives_pickling(error) else RuntimeError(f"{type(error).__name__}: {error}")


def survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # an exception may refuse either in any way
        return False


def work(pickled: bytes, worker: int, workers: int, pipe: Connection, bytes_read: BytesRead) -> None:
    """What a worker's process runs, until the rank closes the pipe or is gone."""
    try:
        set_up_process()
        parts = pickle.loads(pickled)
        parts.progress = partial(bytes_read.add, worker)
        serve(parts, worker, workers, pipe)
    except Exception as error:
        with contextlib.suppress(ConnectionError):  # the rank is gone
            pipe.send(Failure(error))
    os._exit(0)  # reading threads may hang in a store that does not answer; nothing here needs them to end


def set_up_process() -> None:
    """One thread per worker, behind the rank's own, and Ctrl-C is for the rank to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def serve(parts: Parts, worker: int, workers: int, pipe: Connection) -> None:
    filler = parts.filler(worker, workers)
    buffers: dict[int, Buffer] = {}
    while (message := next_message(pipe)) is not None:
        match message:
            case ("buffer", number, size):
                buffers[number] = Buffer(number, size, recv_handle(pipe))
                buffers[number].close_handle()
            case ("forget", number):
                del buffers[number]
            case ("step", step, number):
                pipe.send(filler.fill(step, buffers[number].memory()))


def next_message(pipe: Connection) -> tuple[Any, ...] | None:
    """The rank's next message; None when it has closed the pipe or is gone."""
    try:
        message: tuple[Any, ...] = pipe.recv()
    except (EOFError, ConnectionError):
        return None
    return message
