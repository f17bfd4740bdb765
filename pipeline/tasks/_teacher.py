"""A model that a task learns from and does not train."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch.distributed as dist
from torch import Tensor

from pipeline.models.minivit import MiniViT

Model = TypeVar("Model", bound=MiniViT)


class Frozen(Generic[Model]):
    """Holds a model in eval mode whose weights take no gradients.

    It is no module itself, so a task may keep it as an attribute: it then has no part in the task's parameters, state
    and training mode, and engines, optimisers, checkpoints and bundles know nothing of it. What moves or casts a task
    does not reach it either: `beside` brings it to the weights of the model that learns. Outputs are constants only
    under `torch.no_grad`.

    With `shard` each rank keeps its share of every weight alone, and layer after layer is gathered when it computes
    (torch's FSDP2): then every rank must call the model equally often.
    """

    def __init__(self, model: Model, *, shard: bool = False) -> None:
        self.model, self._to_be_sharded = model.eval().requires_grad_(False), shard

    def beside(self, weight: Tensor) -> Model:
        """The model, on the device and of the floating-point type of a weight of the model that learns from it."""
        own = next(self.model.parameters())
        if (own.device, own.dtype) != (weight.device, weight.dtype):
            self.model.to(device=weight.device, dtype=weight.dtype)
        if self._to_be_sharded:
            shard_collective(self.model, weight.device.type)
            self._to_be_sharded = False
        return self.model


def shard_collective(model: MiniViT, device_type: str) -> None:
    """Cut every weight into a slice for each rank; what is called of the model afterwards gathers what it needs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for part in (*model.transformer.layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "forward_features")
