"""A model that a task learns from without training it."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch.distributed as dist
from torch import Tensor

from pipeline.models.minivit import MiniViT

Model = TypeVar("Model", bound=MiniViT)


class Frozen(Generic[Model]):
    """Holds a model in eval mode whose weights require no gradients.

    It is not a module, so a task may keep it as an attribute without making it part of the task's parameters, state and
    training mode; engines, optimisers, checkpoints and bundles ignore it. Moving or casting the task does not affect it
    either: `model_like` moves it to the weights of the student. Outputs are constants only under `torch.no_grad`.

    With `shard` each rank keeps only its slice of every weight, and each layer is gathered when it computes (torch's
    FSDP2); every rank must then call the model equally often.
    """

    def __init__(self, model: Model, *, shard: bool = False) -> None:
        self.model, self._to_be_sharded = model.eval().requires_grad_(False), shard

    def model_like(self, weight: Tensor) -> Model:
        """The model on the device and in the dtype of `weight`, a weight of the student."""
        own = next(self.model.parameters())
        if (own.device, own.dtype) != (weight.device, weight.dtype):
            self.model.to(device=weight.device, dtype=weight.dtype)
        if self._to_be_sharded:
            shard_collective(self.model, weight.device.type)
            self._to_be_sharded = False
        return self.model


def shard_collective(model: MiniViT, device_type: str) -> None:
    """Slice every weight across the ranks; later calls of the model gather the weights that they need."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for part in (*model.transformer.layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "forward_features")
