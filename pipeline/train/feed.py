"""Batches on the compute device, with the next one transferred while a step runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.stream.batch import Batch
from pipeline.stream.prefetch import Prefetcher
from pipeline.train.micro_batch import tensors_to_move, with_tensors
from pipeline.train.streams import Copies, copies_of


@contextmanager
def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Iterator[Batch]]:
    """The same batches on a device. For a GPU, a thread copies one batch ahead on its own stream."""
    if device.type == "cpu":
        yield iter(batches)
        return
    copies = copies_of(device)
    with Prefetcher(moving(batches, copies), depth=1, prepare=copies.enter_thread) as moved:
        yield received(moved, copies)


def moving(batches: Iterable[Batch], copies: Copies) -> Generator[tuple[Batch, Any], None, None]:
    """Batches whose copy to the device has begun, each with the moment to `receive` it after."""
    for batch in batches:
        tensors, moment = copies.to_device(tensors_to_move(batch))
        yield with_tensors(batch, tensors), moment


def received(moved: Iterable[tuple[Batch, Any]], copies: Copies) -> Iterator[Batch]:
    """Batches that are ready for this thread to compute with."""
    for batch, moment in moved:
        copies.receive(tensors_to_move(batch), moment)
        yield batch
