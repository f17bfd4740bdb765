"""The process of a loader worker. It does not import torch itself; image code that needs torch imports it."""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

import cv2
import numpy as np

from pipeline.stream.batch_plan import BatchPlan

NICENESS = 5  # gives the rank's own threads priority if CPUs are scarce


class Buffer:
    """Memory shared by several processes; `number` identifies it among a rank's buffers."""

    def __init__(self, number: int, size: int, handle: int | None = None) -> None:
        self.number, self.size = number, size
        self.handle = os.memfd_create("batch") if handle is None else handle
        if handle is None:
            os.ftruncate(self.handle, size)
        self._memory = mmap.mmap(self.handle, size)

    def memory(self) -> np.ndarray:
        """The memory as uint8 [size]."""
        return np.frombuffer(self._memory, np.uint8)

    def close_handle(self) -> None:
        """Close the file handle; the memory stays alive as long as any array of it."""
        os.close(self.handle)


class BytesRead:
    """The number of bytes that a rank's loader workers have read, in shared memory."""

    def __init__(self, workers: int) -> None:
        self._of_workers = multiprocessing.get_context("forkserver").RawArray("q", max(workers, 1))

    def add(self, worker: int, size: int) -> None:
        self._of_workers[worker] += size  # threads may race and lose some; only growth matters

    def total(self) -> int:
        return sum(self._of_workers)


class Failure:
    """The error that ended a worker, to be raised in its rank, with its traceback."""

    def __init__(self, error: Exception) -> None:
        self.stack = "".join(traceback.format_exception(error))
        self.error = error if survives_pickling(error) else RuntimeError(f"{type(error).__name__}: {error}")


def survives_pickling(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # pickling or unpickling an exception may fail in any way
        return False


def work(pickled: bytes, worker: int, workers: int, pipe: Connection, bytes_read: BytesRead) -> None:
    """Main function of a worker process; returns when the rank closes the pipe or is gone."""
    try:
        set_up_process()
        plan = pickle.loads(pickled)
        plan.progress = partial(bytes_read.add, worker)
        serve(plan, worker, workers, pipe)
    except Exception as error:
        with contextlib.suppress(ConnectionError):  # the rank is gone
            pipe.send(Failure(error))
    os._exit(0)  # does not wait for reading threads, which may hang in a store that does not respond


def set_up_process() -> None:
    """Use one thread per worker at lower priority than the rank's, and leave Ctrl-C to the rank."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def serve(plan: BatchPlan, worker: int, workers: int, pipe: Connection) -> None:
    writer = plan.row_writer(worker, workers)
    buffers: dict[int, Buffer] = {}
    while (message := next_message(pipe)) is not None:
        match message:
            case ("buffer", number, size):
                buffers[number] = Buffer(number, size, recv_handle(pipe))
                buffers[number].close_handle()
            case ("forget", number):
                del buffers[number]
            case ("step", step, number):
                pipe.send(writer.write(step, buffers[number].memory()))


def next_message(pipe: Connection) -> tuple[Any, ...] | None:
    """The rank's next message; None if it closed the pipe or is gone."""
    try:
        message: tuple[Any, ...] = pipe.recv()
    except (EOFError, ConnectionError):
        return None
    return message
