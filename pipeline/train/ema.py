"""Exponential moving average of the weights, partitioned over the ranks like the rest of the state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = "ema-rank-{rank:05d}.safetensors"


class ShardedEMA:
    """fp32 averages, each held by one rank: 4 bytes a parameter in all, however many ranks there are.

    Up to ZeRO-2 weights are replicated, and a rank averages every W-th tensor whole. Under ZeRO-3 a rank averages its
    own slice of every tensor. `decay` is the weight of the past (Polyak & Juditsky 1992), at most (1 + t) / (10 + t).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        by_size = sorted(model.named_parameters(), key=lambda item: item[1].numel())  # so that shares are nearly equal
        self.parameters: dict[str, Any] = dict(by_size)  # ZeRO-3 adds `ds_*` attributes
        self.sliced = any(hasattr(parameter, "ds_tensor") for parameter in self.parameters.values())
        self.averages = {name: value.float().clone() for name, value in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        """The tensors this rank averages, as they are now."""
        if self.sliced:
            return {name: parameter.ds_tensor.detach() for name, parameter in self.parameters.items()}
        owned = list(self.parameters.items())[self.rank :: self.world_size]
        return {name: parameter.detach() for name, parameter in owned}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after optimiser step number `step` (from 1)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        live = [value.float() for value in self._live().values()]
        torch._foreach_lerp_(list(self.averages.values()), live, weight)

    def full_state_collective(self) -> dict[str, Tensor]:
        """All averages, whole, fp32, on the CPU. Same on every rank."""
        return {name: self._whole(name, index).cpu() for index, name in enumerate(self.parameters)}

    def _whole(self, name: str, index: int) -> Tensor:
        parameter = self.parameters[name]
        if self.sliced:
            slices = [torch.empty_like(self.averages[name]) for _ in range(self.world_size)]
            dist.all_gather(slices, self.averages[name])
            return torch.cat(slices)[: parameter.ds_numel].view(parameter.ds_shape)
        owner = index % self.world_size
        mine = owner == self.rank
        whole = self.averages[name].clone() if mine else torch.empty_like(parameter, dtype=torch.float32)
        dist.broadcast(whole, src=owner)
        return whole

    @contextmanager
    def swapped_in_collective(self) -> Iterator[None]:
        """Within this context the model computes with the averages."""
        if self.sliced:
            targets = {name: parameter.ds_tensor for name, parameter in self.parameters.items()}
            values = self.averages
        else:
            targets = {name: parameter.data for name, parameter in self.parameters.items()}
            values = {name: self._whole(name, index) for index, name in enumerate(self.parameters)}
        kept = {name: target.clone() for name, target in targets.items()}
        for name, target in targets.items():
            target.copy_(values[name])
        try:
            yield
        finally:
            for name, target in targets.items():
                target.copy_(kept[name])

    def save_collective(self, folder: Path) -> None:
        """Write this rank's averages into `folder`."""
        tensors = {name: value.cpu().contiguous() for name, value in self.averages.items()}
        save_file(tensors, folder / FILE.format(rank=self.rank), metadata={"sliced": str(self.sliced)})

    def load_collective(self, folder: Path) -> None:
        """Take the averages from a checkpoint written by any number of ranks and any ZeRO stage."""
        files = [load_file(path) for path in sorted(folder.glob("ema-rank-*.safetensors"))]
        for name, average in self.averages.items():
            parts = [tensors[name].flatten() for tensors in files if name in tensors]
            numel = getattr(self.parameters[name], "ds_numel", self.parameters[name].numel())
            whole = torch.cat(parts)[:numel]
            if self.sliced:
                padded = torch.zeros(average.numel() * self.world_size)
                padded[:numel] = whole
                whole = padded.view(self.world_size, -1)[self.rank]
            average.copy_(whole.view_as(average))
