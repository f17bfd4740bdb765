"""Copies that overlap with computation: plain copies on a CPU, and on GPUs with a test double of torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.train.streams import CudaCopies, copies_of

SECOND = torch.device("cuda", 1)


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns in a new thread; what it raises is raised here."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def test_the_double_has_torchs_ways(fake_torch: Any) -> None:
    """The three that the first saver got wrong; `with torch.cuda.stream(...)` can be asked without a GPU."""
    with torch.cuda.stream(None) as given:
        assert given is None
    cuda = fake_torch.cuda
    with cuda.stream(cuda.Stream(SECOND)) as given:
        assert given is None
        assert cuda.current_device() == 1
    cuda.set_device(SECOND)
    assert in_thread(cuda.current_device) == 0
    live, target = cuda.tensor(torch.ones(3), SECOND), fake_torch.empty((3,), dtype=torch.float32, pin_memory=True)

    def copy_as_it_was() -> list[float]:
        stream = cuda.Stream()
        with cuda.stream(stream):
            target.copy_(live, non_blocking=True)
        stream.synchronize()
        return target.tolist()

    assert in_thread(copy_as_it_was) == [77.0] * 3, "another GPU's stream knows nothing of the copy"
    with pytest.raises(AssertionError, match="pageable"):
        live.copy_(torch.zeros(3), non_blocking=True)


def test_all_bytes_are_there_when_to_host_returns(fake_torch: Any) -> None:
    """In a thread of its own, on the second GPU, as they were at the moment that was asked for."""
    cuda = fake_torch.cuda
    cuda.set_device(SECOND)
    copies = copies_of(SECOND)
    live = cuda.tensor(torch.zeros(5), SECOND)
    step = cuda.tensor(torch.tensor(0.0), SECOND)
    cuda.current_stream().add(lambda: live.as_subclass(Tensor).fill_(1.0))  # a step under way
    moment = copies.moment()
    sources = {"weights": live, "step": step}

    def save() -> dict[str, Tensor]:
        copies.enter_thread()
        assert cuda.current_device() == 1
        targets = {name: copies.host_memory(tensor) for name, tensor in sources.items()}
        copies.to_host(sources, targets, after=moment)
        return targets

    found = in_thread(save)
    assert found["weights"].tolist() == [1.0] * 5
    assert found["step"].item() == 0.0


def test_what_was_given_to_the_device_is_there_before_it_is_computed_with(fake_torch: Any) -> None:
    cuda = fake_torch.cuda
    cuda.set_device(SECOND)
    copies = copies_of(SECOND)
    host = {"images": torch.arange(6, dtype=torch.uint8), "labels": torch.tensor([3, 1]), "none": torch.zeros(0)}

    def give() -> tuple[dict[str, Tensor], Any]:
        copies.enter_thread()
        return copies.to_device(host)

    moved, moment = in_thread(give)
    assert moved["images"].tolist() == [77] * 6, "on its way"
    copies.receive(moved, moment)
    cuda.current_stream().synchronize()  # of the computation alone
    for name, tensor in host.items():
        assert torch.equal(moved[name].as_subclass(Tensor), tensor)
        assert moved[name].recorded == [cuda.current_stream()], "else its memory is handed out too early"


def test_the_memory_of_the_host_may_change_once_it_was_given(fake_torch: Any) -> None:
    """A loader's buffer is written to again while its batch may still be on the way."""
    cuda = fake_torch.cuda
    copies = copies_of(torch.device("cuda", 0))
    buffer = torch.ones(4)
    moved, moment = copies.to_device({"images": buffer})
    buffer.zero_()
    copies.receive(moved, moment)
    cuda.current_stream().synchronize()
    assert moved["images"].tolist() == [1.0] * 4


def test_on_a_cpu_copies_are_done_at_once() -> None:
    copies = copies_of(torch.device("cpu"))
    assert not isinstance(copies, CudaCopies)
    copies.enter_thread()
    source = {"weights": torch.arange(4.0), "step": torch.tensor(2.0)}
    targets = {name: copies.host_memory(tensor) for name, tensor in source.items()}
    copies.to_host(source, targets, after=copies.moment())
    assert all(torch.equal(targets[name], tensor) for name, tensor in source.items())
    moved, moment = copies.to_device(source)
    copies.receive(moved, moment)
    assert all(moved[name] is tensor for name, tensor in source.items())
