"""LAMB for tensors that are whole on each rank or partitioned over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2): Adam with each tensor's step scaled to the tensor's norm times the rate.

    Tensors in groups without weight decay (biases, norms, positions, tokens) take the plain Adam step, as is usual.
    `partitioned` means that each rank holds a part of each tensor, as under ZeRO, and norms are summed over all ranks.
    This requires one group per tensor, since ZeRO joins the tensors of a group, and all ranks must call `step`. Parts
    are of equal size, the last ones padded with arbitrary values.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        *,
        partitioned: bool = False,
    ) -> None:
        super().__init__(list(params), {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.partitioned = partitioned
        for group in self.param_groups:
            assert not partitioned or len(group["params"]) == 1, "a group per tensor"
            group["numel"] = sum(tensor.numel() for tensor in group["params"])  # ZeRO later replaces tensors with parts

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every tensor that has a gradient. Collective if the tensors are partitioned."""
        assert closure is None, "LAMB needs no closure"
        updates = [
            (group, tensor, self._adam_update(group, tensor))
            for group in self.param_groups
            for tensor in group["params"]
            if tensor.grad is not None
        ]
        if not updates:
            return
        squares = torch.stack(
            [self._square(group, part) for group, tensor, update in updates for part in (tensor, update)]
        ).view(-1, 2)
        if self.partitioned:
            dist.all_reduce(squares)
        lengths, update_lengths = squares.sqrt().unbind(dim=1)
        measurable = (lengths > 0) & (update_lengths > 0)
        trust = torch.where(measurable, lengths / update_lengths, torch.ones_like(lengths))
        for (group, tensor, update), ratio in zip(updates, trust, strict=True):
            if group["weight_decay"]:
                update.mul_(ratio)
            tensor.sub_(update, alpha=group["lr"])

    def _adam_update(self, group: dict[str, Any], tensor: Tensor) -> Tensor:
        """Ratio of the bias-corrected moments plus weight decay; updates the moments."""
        state, (beta1, beta2) = self.state[tensor], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor), torch.zeros_like(tensor)
        # On the CPU, so that reading it does not synchronise with a GPU; loading a checkpoint puts it on one.
        state["step"] = state["step"].cpu() + 1
        step = state["step"].item()
        state["exp_avg"].lerp_(tensor.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(tensor.grad, tensor.grad, value=1 - beta2)
        mean = state["exp_avg"] / (1 - beta1**step)
        deviation = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_()
        update: Tensor = mean.div_(deviation.add_(group["eps"]))
        return update.add_(tensor, alpha=group["weight_decay"])

    def _square(self, group: dict[str, Any], tensor: Tensor) -> Tensor:
        """Sum of squares of a tensor, or of this rank's part of it, in fp32."""
        if self.partitioned:
            tensor = tensor[: max(group["numel"] - dist.get_rank() * len(tensor), 0)]
        return tensor.float().square().sum()
