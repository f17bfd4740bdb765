"""Shared buffers of the processes: they become free when their tensors are released, and grow with the images."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.training import ResolutionConfig
from pipeline.errors import DataError
from pipeline.shards.urls import refuse_commands
from pipeline.stream import loader, workers
from pipeline.stream.batch_plan import BatchPlan
from pipeline.stream.resolution import size_at


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the buffers that the rank makes."""
    made = []
    real = workers.Buffer

    class Recording(real):
        def __init__(self, number: int, size: int, handle: int | None = None) -> None:
            super().__init__(number, size, handle)
            made.append(size)

    monkeypatch.setattr(workers, "Buffer", Recording)
    return made


def test_a_few_buffers_are_used_again_and_again(uneven, kit, buffers: list[int]) -> None:
    with kit.train_loader(uneven, data={"loader_workers": 2}) as loader:
        for _ in range(50):
            next(loader)
            gc.collect(0)  # what is new alone: of all that other tests have left, each would take a second
    assert len(buffers) <= 8


def test_batches_that_are_kept_are_never_written_again(uneven, kit) -> None:
    with kit.train_loader(uneven, data={"loader_workers": 2}) as loader:
        kept = list(islice(loader, 20))
        first = [batch.views["image"].clone() for batch in kept]
        del kept[::2]
        gc.collect()
        for _ in range(20):
            next(loader)
        assert all(torch.equal(batch.views["image"], image) for batch, image in zip(kept, first[1::2], strict=True))


def test_larger_images_take_larger_buffers(uneven, kit, buffers: list[int]) -> None:
    sizes = ResolutionConfig(mode="random", sizes=[8, 500, 900])
    size = partial(size_at, total_steps=100, base_size=(8, 8), resolution=sizes, seed=0)
    with kit.train_loader(uneven, data={"loader_workers": 1}, size_at=size) as loader:
        sides = [next(loader).views["image"].shape[-1] for _ in range(12)]
    assert sides == [size(step)[0] for step in range(12)]
    assert max(buffers) >= 8 * 900 * 900


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_bytes_read_grow_with_the_windows(loader_workers: int, uneven, kit) -> None:
    with kit.train_loader(uneven, data={"loader_workers": loader_workers}) as loader:
        next(loader)
        first = loader.bytes_read()
        assert first > 0
        while loader.bytes_read() == first:
            next(loader)


class RaisesInWorker:
    """A `size_at` that a worker cannot even unpack."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self, step: int) -> tuple[int, int]:
        return 8, 8

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("size_at", "error", "message"),
    [
        (RaisesInWorker(int, "seven"), ValueError, "invalid literal .* 'seven'"),
        (RaisesInWorker(refuse_commands, "pipe:cat"), DataError, "pipe:"),
        (RaisesInWorker(socket.create_connection, ("127.0.0.1", closed_port())), ConnectionRefusedError, "refused"),
        (RaisesInWorker(bytes.decode, b"\xff"), UnicodeDecodeError, "invalid start byte"),
        (RaisesInWorker(np.zeros, 1 << 57), MemoryError, "Unable to allocate"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_workers_own_error_is_raised_in_its_rank(
    size_at: Any, error: type[Exception], message: str, uneven, kit
) -> None:
    with (
        pytest.raises(error, match=message) as raised,
        kit.train_loader(uneven, data={"loader_workers": 1}, size_at=size_at) as loader,
    ):
        next(loader)
    assert "in a loader worker:\nTraceback" in str(raised.value.__cause__)


def test_it_is_read_too_where_the_pipe_breaks_while_a_buffer_is_handed_over(
    uneven, kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = workers.BaseProcess.start
    monkeypatch.setattr(workers.BaseProcess, "start", lambda process: (started(process), process.join()))
    size_at = RaisesInWorker(int, "seven")
    with (
        pytest.raises(ValueError, match=r"invalid literal .* 'seven'"),
        kit.train_loader(uneven, data={"loader_workers": 1}, size_at=size_at) as loader,
    ):
        next(loader)


class Unpicklable(Exception):
    """It cannot be made from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_travel_is_reported_by_name() -> None:
    try:
        raise Unpicklable(1, 2)
    except Unpicklable as error:
        failure = workers.Failure(error)
    assert isinstance(failure.error, RuntimeError)
    assert str(failure.error) == "Unpicklable: 1 and 2"
    assert "raise Unpicklable(1, 2)" in failure.stack


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-signal.SIGKILL, "a loader worker was killed, .*memory ran out; lower data.loader_workers"),
        (-signal.SIGSEGV, "a loader worker ended by SIGSEGV; its output is in its rank's log"),
        (1, "a loader worker ended with exit status 1; its output is in its rank's log"),
    ],
)
def test_what_is_said_of_a_worker_that_could_say_nothing(code: int, message: str, uneven, kit) -> None:
    end = (os._exit, code) if code > 0 else (signal.raise_signal, -code)
    with (
        pytest.raises(DataError, match=message),
        kit.train_loader(uneven, data={"loader_workers": 1}, size_at=RaisesInWorker(*end)) as loader,
    ):
        next(loader)


@pytest.fixture
def grey(uneven, kit, monkeypatch: pytest.MonkeyPatch) -> tuple[BatchPlan, np.ndarray]:
    """What a grey training stage hands to its workers, and the images of its first batch."""
    handed, real = [], loader.batches_of
    monkeypatch.setattr(loader, "batches_of", lambda plan, *rest: handed.append(copy(plan)) or real(plan, *rest))
    size = partial(size_at, total_steps=9, base_size=(8, 8), resolution=ResolutionConfig(), seed=0)
    with kit.train_loader(uneven, data={"loader_workers": 0}, size_at=size) as batches:
        return handed[0], next(batches).views["image"].numpy()


def test_workers_load_no_torch_where_they_need_none(grey: tuple[BatchPlan, np.ndarray], tmp_path: Path) -> None:
    """Neither with their own code nor with what they are handed."""
    (tmp_path / "grey.pickle").write_bytes(pickle.dumps(grey))
    program = """
import pickle, sys
import numpy as np
from pipeline.stream.worker_process import set_up_process
set_up_process()
plan, images = pickle.load(open(sys.argv[1], "rb"))
layout = plan.layout(0)
memory = np.empty(layout.bytes, np.uint8)
plan.row_writer(0, 1).write(0, memory)
assert (layout.arrays(memory)["views.image"] == images).all()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "grey.pickle"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_workers_share_the_torch_that_images_in_colour_need(grey: tuple[BatchPlan, np.ndarray]) -> None:
    assert workers.modules_to_preload(grey[0]) == []
    assert workers.modules_to_preload(replace(grey[0], channels=3)) == ["torch"]
