"""Copies between a device and the host that overlap with computation.

On a GPU they use their own stream and page-locked memory. Three rules that torch does not check:

- A new thread uses GPU 0, whatever its process uses: it must call `enter_thread` before it touches the device.
- A non-blocking copy is done only when its stream is, and other streams must wait for its event.
- Memory that one stream allocated and another reads is reused too early unless it is recorded on the reading stream.

On a CPU the same calls are plain copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Copies(Protocol):
    """Copies for the saver and the feed. A `moment` is opaque: it stands for the work queued on the device so far."""

    def enter_thread(self) -> None:
        """Select the device in this thread; each thread must call it before it touches the device."""

    def moment(self) -> Any:
        """A marker for the work that this thread has queued on the device so far."""

    def host_memory(self, like: Tensor) -> Tensor:
        """Uninitialised host memory that the device can copy to at full speed."""

    def to_host(self, sources: Tensors, targets: Tensors, after: Any) -> None:
        """Copy tensors, as of a moment, into host memory; returns when the copy is complete."""

    def to_device(self, tensors: Tensors) -> tuple[dict[str, Tensor], Any]:
        """Begin to copy tensors to the device; also returns the moment to `receive` them after."""

    def receive(self, tensors: Tensors, after: Any) -> None:
        """Let subsequent computation of this thread use tensors from `to_device`."""


class CpuCopies:
    """Copies within host memory."""

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
    """Copies to and from one GPU."""

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
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            for name, source in sources.items():
                targets[name].copy_(source, non_blocking=True)
        self._stream.synchronize()

    def to_device(self, tensors: Tensors) -> tuple[dict[str, Tensor], torch.cuda.Event]:
        moved = {}
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                locked = self.host_memory(tensor).copy_(tensor)  # torch keeps it until the copy is done
                moved[name] = locked.to(self._device, non_blocking=True)
        return moved, self._stream.record_event()

    def receive(self, tensors: Tensors, after: torch.cuda.Event) -> None:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(after)
        for tensor in tensors.values():
            tensor.record_stream(stream)


def copies_of(device: torch.device) -> Copies:
    """The copies for a device."""
    return CudaCopies(device) if device.type == "cuda" else CpuCopies()
