"""A model that a task learns from and does not train."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Frozen(Generic[Model]):
    """Holds a model in eval mode whose weights take no gradients.

    It is no module itself, so a task may keep it as an attribute: it then has no part in the task's parameters, state
    and training mode, and engines, optimisers, checkpoints and bundles know nothing of it. What moves or casts a task
    does not reach it either: `beside` brings it to the weights of the model that learns. Outputs are constants only
    under `torch.no_grad`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model.eval().requires_grad_(False)

    def beside(self, weight: Tensor) -> Model:
        """The model, on the device and of the floating-point type of a weight of the model that learns from it."""
        own = next(self.model.parameters())
        if (own.device, own.dtype) != (weight.device, weight.dtype):
            self.model.to(device=weight.device, dtype=weight.dtype)
        return self.model
