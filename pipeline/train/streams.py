"""Copies between a device and the host that run beside the computation.

On a GPU they have a stream of their own and go through page-locked memory. Three rules that torch does not check:

- A new thread stands on GPU 0 whatever its process uses: it must `enter_thread` before it touches the device.
- A copy that does not block is done when its stream says so, and another stream must wait for its event.
- Memory that one stream allocated and another reads is handed out again too early unless it is recorded there.

On a CPU the same calls are plain copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Copies(Protocol):
    """What the saver and the feed ask for. A `moment` is opaque: the work given to the device up to then."""

    def enter_thread(self) -> None:
        """Stand on the device; the first thing that a thread which touches it does."""

    def moment(self) -> Any:
        """The work that this thread has given to the device so far."""

    def host_memory(self, like: Tensor) -> Tensor:
        """Uninitialised memory of the host that the device can copy to at full speed."""

    def to_host(self, sources: Tensors, targets: Tensors, after: Any) -> None:
        """Copy tensors as they are at a moment into host memory; returns when all bytes are there."""

    def to_device(self, tensors: Tensors) -> tuple[dict[str, Tensor], Any]:
        """Begin to copy tensors to the device; also returns the moment to `receive` them after."""

    def receive(self, tensors: Tensors, after: Any) -> None:
        """Let what this thread computes from now on use tensors that `to_device` gave."""


class CpuCopies:
    """Within the host's memory."""

    def enter_thread(self) -> None:
        pass

    def moment(self) -> None:
        pass

    def host_memory(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype)

    def to_host(self, sources: Tensors, targets: Tensors, after: None) -> None:
        for name, source in sources.items():
            targets[name].copy_(source)

    def to_device(self, tensors: Tensors) -> tuple[dict[str, Tensor], None]:
        return dict(tensors), None

    def receive(self, tensors: Tensors, after: None) -> None:
        pass


class CudaCopies:
    """To and from one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def enter_thread(self) -> None:
        torch.cuda.set_device(self._device)

    def moment(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self._device).record_event()

    def host_memory(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def to_host(self, sources: Tensors, targets: Tensors, after: torch.cuda.Event) -> None:
        with torch.cuda.stream(self._stream):  # gives None
            self._stream.wait_event(after)
            for name, source in sources.items():
                targets[name].copy_(source, non_blocking=True)
        self._stream.synchronize()

    def to_device(self, tensors: Tensors) -> tuple[dict[str, Tensor], torch.cuda.Event]:
        moved = {}
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                locked = self.host_memory(tensor).copy_(tensor)  # torch keeps it until the copy from it is done
                moved[name] = locked.to(self._device, non_blocking=True)
        return moved, self._stream.record_event()

    def receive(self, tensors: Tensors, after: torch.cuda.Event) -> None:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(after)
        for tensor in tensors.values():
            tensor.record_stream(stream)


def copies_of(device: torch.device) -> Copies:
    """How to copy to and from a device."""
    return CudaCopies(device) if device.type == "cuda" else CpuCopies()
