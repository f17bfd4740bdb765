"""Real streams, events and page-locked memory of torch; `tests/train` tests the same code with a test double."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.stream.batch import Batch
from pipeline.train.feed import on_device
from pipeline.train.micro_batch import tensors_of
from pipeline.train.streams import copies_of

pytestmark = pytest.mark.gpu

SIDE, COUNT = 1024, 12


def in_thread(work: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def pictures(count: int) -> Tensor:
    """Of three megabytes each."""
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batches(count: int, images: Tensor) -> Iterator[Batch]:
    """Batches of images made in advance, so that only the copy to the device is measured."""
    size = len(images)
    numbers, ones = torch.arange(size), torch.ones(size)
    for step in range(count):
        yield Batch({"image": images}, {"label": numbers + step}, ones, numbers, [""] * size, step)


def test_a_thread_saves_what_the_step_under_way_leaves(device: torch.device) -> None:
    """All GPUs: a new thread does not use any but the first by default."""
    for place in [device, *(torch.device("cuda", index) for index in range(1, torch.cuda.device_count()))]:
        copies = copies_of(place)
        copies.enter_thread()
        live = torch.zeros(1 << 26, device=place)
        for _ in range(50):
            live += 1
        moment = copies.moment()

        def save(live: Tensor = live, copies: Any = copies, moment: Any = moment) -> Tensor:
            copies.enter_thread()
            target = copies.host_memory(live)
            copies.to_host({"live": live}, {"live": target}, after=moment)
            return target.clone()

        found = in_thread(save)
        assert bool((found == 50).all()), place


def test_batches_arrive_whole_while_others_are_computed_with(device: torch.device) -> None:
    sums, images = [], pictures(8)
    with on_device(batches(COUNT, images), device) as moved:
        for batch in moved:
            assert all(tensor.device == device for tensor in tensors_of(batch).values())
            sums.append(batch.views["image"].to(torch.int64).sum() + batch.targets["label"].sum())
    expected = [
        int(batch.views["image"].to(torch.int64).sum() + batch.targets["label"].sum())
        for batch in batches(COUNT, images)
    ]
    assert [int(one) for one in sums] == expected


def test_copies_hide_behind_the_computation(device: torch.device) -> None:
    """Both at the same time take less than one after the other, with a computation about as long as a copy."""
    matrix, images = torch.randn(2048, 2048, device=device) / 2048**0.5, pictures(32)

    def compute(products: int) -> None:
        result = matrix
        for _ in range(products):
            result = result @ matrix
        result[0, 0].item()  # waits for this stream alone, as a step does

    def seconds(work: Callable[[], None]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def feed(products: int) -> None:
        with on_device(batches(COUNT, images), device) as moved:
            for _ in moved:
                compute(products)

    compute(10)
    feed(0)  # takes its memory
    copying = seconds(lambda: feed(0)) / COUNT
    products = max(round(copying / (seconds(lambda: compute(100)) / 100)), 1)
    computing = seconds(lambda: compute(products))
    both = seconds(lambda: feed(products)) / COUNT
    assert both < 0.8 * (copying + computing), f"{copying=} {computing=} {both=}"
