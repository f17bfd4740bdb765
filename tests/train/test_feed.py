from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.stream.batch import Batch
from pipeline.train.feed import on_device
from pipeline.train.micro_batch import tensors_of

WAIT_S = 20


def batches(count: int, made: list[threading.Event] | None = None) -> Iterator[Batch]:
    for step in range(count):
        if made:
            made[step].set()
        yield Batch(
            views={"image": torch.full((2, 1, 2, 2), step, dtype=torch.uint8)},
            targets={"label": torch.full((2,), step), "boxes": torch.ones(3, 4), "boxes.offsets": torch.arange(3)},
            weights=torch.ones(2),
            slots=torch.arange(2) + 2 * step,
            keys=["a", "b"],
            step=step,
        )


def test_on_a_cpu_batches_pass_as_they_are() -> None:
    made = list(batches(3))
    with on_device(made, torch.device("cpu")) as moved:
        assert all(ours is theirs for ours, theirs in zip(moved, made, strict=True))


def test_every_batch_arrives_whole_and_in_order(fake_torch: Any) -> None:
    """From a thread that stands on the rank's own GPU, whichever that is."""
    device = torch.device("cuda", 1)
    fake_torch.cuda.set_device(device)
    with on_device(batches(5), device) as moved:
        for batch, expected in zip(moved, batches(5), strict=True):
            fake_torch.cuda.current_stream().synchronize()
            assert (batch.step, batch.keys) == (expected.step, expected.keys)
            on_host = batch.targets.pop("boxes.offsets")
            assert torch.equal(on_host, expected.targets["boxes.offsets"])
            for name, tensor in tensors_of(batch).items():
                assert tensor.at == device
                assert torch.equal(tensor.as_subclass(Tensor), tensors_of(expected)[name]), name
    assert fake_torch.cuda.contexts == {1}


def test_the_next_batch_is_on_its_way_while_one_is_computed_with(fake_torch: Any) -> None:
    """And no more than one beyond it is begun: each is memory of the GPU."""
    made = [threading.Event() for _ in range(6)]
    with on_device(batches(6, made), torch.device("cuda", 0)) as moved:
        next(moved)
        assert made[1].wait(WAIT_S)
        assert not made[2].is_set()


def test_a_fault_of_the_loader_comes_out_where_its_batch_would(fake_torch: Any) -> None:
    def broken() -> Iterator[Batch]:
        yield from batches(1)
        raise OSError("a torn shard")

    with on_device(broken(), torch.device("cuda", 0)) as moved:
        next(moved)
        with pytest.raises(OSError, match="a torn shard"):
            next(moved)
