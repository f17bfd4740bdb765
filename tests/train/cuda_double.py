"""A stand-in for `torch` in `pipeline.train.streams`, which behaves as torch does with several GPUs.

Nothing that is given to a stream happens before something waits for it. As with torch, a new thread stands on GPU 0;
`with stream(...)` gives None; a copy runs on the current stream of the GPU whose tensor it reads or writes, so waiting
for another GPU's stream does not wait for it; a copy that does not block needs page-locked memory, and taking that
makes a context of the process on the GPU where the thread stands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

GARBAGE = 77  # what memory holds before a copy arrives


class Stream:
    """Work of one GPU in the order it was given."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._work: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    def add(self, work: Callable[[], object]) -> None:
        self._work.append(work)

    def run(self, until: int | None = None) -> None:
        """Do the first `until` pieces of work; done ones stay, as nothing."""
        with self._lock:
            for number, work in enumerate(self._work[:until]):
                self._work[number] = lambda: None
                work()

    def synchronize(self) -> None:
        self.run()

    def record_event(self) -> Event:
        return Event(self, len(self._work))

    def wait_event(self, event: Event) -> None:
        self.add(event.synchronize)


class Event:
    def __init__(self, stream: Stream, position: int) -> None:
        self._stream, self._position = stream, position

    def synchronize(self) -> None:
        self._stream.run(self._position)


class Host(torch.Tensor):
    """Page-locked memory."""

    cuda: Cuda

    def to(self, device: torch.device, *, non_blocking: bool) -> Device:
        assert non_blocking, "page-locked for nothing"
        moved = self.cuda.tensor(torch.full_like(plain(self), GARBAGE), device)
        moved.copy_(self, non_blocking=True)
        return moved

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Host:
        self.cuda.copy(self, source, non_blocking)
        return self


class Device(torch.Tensor):
    """Memory of a GPU, read or written to in the order of its streams."""

    cuda: Cuda
    at: torch.device
    recorded: list[Stream]

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Device:
        self.cuda.copy(self, source, non_blocking)
        return self

    def record_stream(self, stream: Stream) -> None:
        self.recorded.append(stream)


class Cuda:
    """What `torch.cuda` is for."""

    Event = Event

    def __init__(self, devices: int) -> None:
        self._default = {index: Stream(torch.device("cuda", index)) for index in range(devices)}
        self._thread = threading.local()
        self.contexts: set[int] = set()  # GPUs on which this process takes memory for its own use

    def current_device(self) -> int:
        return getattr(self._thread, "device", 0)

    def set_device(self, device: torch.device | int) -> None:
        self._thread.device = device if isinstance(device, int) else device.index

    def Stream(self, device: torch.device | None = None) -> Stream:  # noqa: N802
        return Stream(device or torch.device("cuda", self.current_device()))

    def current_stream(self, device: torch.device | None = None) -> Stream:
        index = self.current_device() if device is None else device.index
        return self._current.get(index, self._default[index])

    @property
    def _current(self) -> dict[int, Stream]:
        if not hasattr(self._thread, "streams"):
            self._thread.streams = {}
        streams: dict[int, Stream] = self._thread.streams
        return streams

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        index, device = stream.device.index, self.current_device()
        before = self.current_stream(stream.device)
        self._current[index] = stream
        self.set_device(index)
        yield
        self._current[index] = before
        self.set_device(device)

    def tensor(self, values: Tensor, device: torch.device) -> Device:
        """A tensor in a GPU's memory."""
        made = values.clone().as_subclass(Device)
        made.cuda, made.at, made.recorded = self, device, []
        return made

    def copy(self, target: Tensor, source: Tensor, non_blocking: bool) -> None:
        on_gpu = [tensor for tensor in (target, source) if isinstance(tensor, Device)]
        if not on_gpu:
            plain(target).copy_(plain(source))
            return
        [gpu] = on_gpu
        assert not non_blocking or isinstance(target, Host) or isinstance(source, Host), "pageable memory"
        stream = self.current_stream(gpu.at)
        stream.add(lambda: plain(target).copy_(plain(source)))
        if not non_blocking:
            stream.synchronize()


class Torch:
    """What `streams` uses of torch."""

    device = torch.device

    def __init__(self, devices: int = 2) -> None:
        self.cuda = Cuda(devices)

    def empty(self, shape: torch.Size, *, dtype: torch.dtype, pin_memory: bool) -> Host:
        assert pin_memory
        self.cuda.contexts.add(self.cuda.current_device())
        made = torch.full(shape, GARBAGE, dtype=dtype).as_subclass(Host)
        made.cuda = self.cuda
        return made


def plain(tensor: Tensor) -> Tensor:
    """The same memory as an ordinary tensor."""
    return tensor.as_subclass(Tensor)
