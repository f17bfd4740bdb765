"""A hand-written step around a task's module: forward, loss, backward, clip, AdamW."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.bench.step_process import MasterCopy
from pipeline.config.training import OptimizerConfig
from pipeline.stream.batch import Batch
from pipeline.tasks.base import Outputs, TaskModule
from pipeline.tasks.ranks import ALONE
from pipeline.train.device import precision_dtype
from pipeline.train.inputs import normalised_views, view_keys
from pipeline.train.optim import build_optimizer, parameter_groups
from pipeline.train.seeds import COUPLED, DROP_PATH, derive_seed


class BareStep:
    """A task's module on one batch, without engine, ranks and micro-batches.

    In half precision, gradients and weights have fp32 copies, one per parameter group, as in ZeRO.
    """

    def __init__(
        self, module: TaskModule, batch: Batch, config: OptimizerConfig, precision: str, seed: int, total_steps: int
    ) -> None:
        self.batch, self.seed, self.total_steps, self.clip = batch, seed, total_steps, config.clip_grad_norm
        dtype = precision_dtype(precision)
        self.module = module.to(dtype).train()
        groups = parameter_groups(module.model, config)
        lent = [] if dtype == torch.float32 else [group["params"] for group in groups]
        self.gradients = [one_block(weights) for weights in lent]
        self.masters = [MasterCopy(weights) for weights in lent]
        # The model's parameters behind each tensor of the optimiser.
        self.blocks = lent or [[weight] for group in groups for weight in group["params"]]
        for group, master in zip(groups, self.masters, strict=False):
            group["params"] = [master.weights]
        self.optimizer = build_optimizer(groups, config, len(batch.weights), partitioned=False, precision=precision)
        self.weights: list[Tensor] = [one for group in self.optimizer.param_groups for one in group["params"]]
        self.keys = view_keys(batch, derive_seed(seed, DROP_PATH))
        self.averages: list[Tensor] = []
        if module.follower:
            self.averages = [weight.detach().clone() for weight in self.weights]

    def step(self, number: int) -> None:
        """Run step `number`, counted from 0."""
        batch, module = self.batch, self.module
        outputs = module(normalised_views(batch, module.preprocess), batch.targets, batch.weights, self.keys)
        self.loss_of(outputs, number).backward()
        for master, gradients in zip(self.masters, self.gradients, strict=True):
            master.weights.grad = gradients.float()
            gradients.zero_()
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for master in self.masters:
            master.give_weights()
        if self.averages:
            self.move_teacher(number)

    def loss_of(self, outputs: Outputs, number: int) -> Tensor:
        batch = self.batch
        loss = (outputs.losses / self.module.normalisers(batch)).sum()
        if self.module.coupled:
            seed = derive_seed(self.seed, COUPLED, number)
            loss = loss + self.module.couple(outputs.rows, outputs.shared, batch.weights, ALONE, seed).loss
        return loss

    @torch.no_grad()
    def move_teacher(self, number: int) -> None:
        """As in BYOL (Grill et al. 2020): the teacher's momentum rises to 1 along a cosine."""
        assert self.module.follower is not None
        progress = number / (self.total_steps - 1)
        past = 1 - (1 - self.module.momentum) * 0.5 * (1 + math.cos(math.pi * progress))
        torch._foreach_lerp_(self.averages, self.weights, 1 - past)
        teacher = self.module.follower.model_like(next(self.module.model.parameters()))
        names = {id(weight): name for name, weight in self.module.model.named_parameters()}
        for block, average in zip(self.blocks, self.averages, strict=True):
            taught: list[Tensor] = [teacher.get_parameter(names[id(weight)]) for weight in block]
            parts = average.flatten().split([weight.numel() for weight in taught])
            torch._foreach_copy_(taught, [part.view_as(one) for part, one in zip(parts, taught, strict=True)])


def one_block(weights: list[nn.Parameter]) -> Tensor:
    """Permanent gradients of weights, zeros in one block: freed one by one, they would fragment the heap."""
    block = torch.zeros(sum(weight.numel() for weight in weights), dtype=weights[0].dtype)
    for weight, part in zip(weights, block.split([one.numel() for one in weights]), strict=True):
        weight.grad = part.view_as(weight)
    return block
