"""DeepSpeed ZeRO behind a small interface; the only place that imports DeepSpeed."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.training import LARGEST_BUCKET, EngineConfig
from pipeline.train.device import select_device
from pipeline.train.flats import Flat, grouped_flats, replicated_flats, sliced_flats
from pipeline.train.gradients import GradientBlock
from pipeline.train.stall import GROUP_TIMEOUT

# Elements per piece when weights are swapped with other weights, which bounds the extra memory.
SWAPPED_AT_ONCE = 1 << 22


def import_deepspeed() -> Any:
    """Import DeepSpeed without the unused parts, whose imports would add four seconds to every start.

    Its autotuner would import MLflow, and its Muon optimiser, which ZeRO imports, would compile kernels on import.
    """
    hidden = {} if "mlflow" in sys.modules else {"mlflow": None}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    compile_now = torch.compile
    torch.compile = lambda model=None, **_: model or (lambda function: function)  # type: ignore[assignment]
    try:
        import deepspeed
        import deepspeed.runtime.bf16_optimizer
        import deepspeed.runtime.zero.muon.muon_optimizer
    finally:
        torch.compile = compile_now
        for name in hidden:
            del sys.modules[name]
    # It would collect garbage and print the memory in use, twice for each parameter group.
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None
    return deepspeed


class Engine:
    """A module and its optimiser, partitioned over all ranks by ZeRO (Rajbhandari et al. 2020).

    `model` is the part of the module that has the parameters and defines their names; default: the whole module.
    Every rank must call `step` and the methods named `*_collective` with the same arguments. `flats` are the fp32
    master weights and the optimiser state that this rank owns; the weights for computation are derived from them.
    `before_change` is called before these change, so that pending reads can finish first.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        *,
        clip_grad_norm: float,
        model: nn.Module | None = None,
    ) -> None:
        # DeepSpeed compiles its shared-memory collectives with this environment's ninja, even if it is not activated.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        deepspeed = import_deepspeed()
        deepspeed.utils.logger.setLevel(logging.WARNING)
        self.zero_stage, self.model = config.zero_stage, model or module
        self._lr_scales = [(group["lr"], group.get("lr_scale", 1.0)) for group in optimizer.param_groups]
        parameters = sum(p.numel() for p in module.parameters())
        overlaps = select_device().type == "cuda" and torch.distributed.get_world_size() > 1
        settings = engine_settings(config, clip_grad_norm=clip_grad_norm, parameters=parameters, overlaps=overlaps)
        self._bucket_size: int = settings["zero_optimization"]["reduce_bucket_size"]
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        # DeepSpeed reduces in its own process group, which has torch's default timeout: NCCL aborts after 10 minutes.
        torch.distributed.set_timeout(GROUP_TIMEOUT, self._engine.data_parallel_group)
        self._zero = self._engine.optimizer
        if hasattr(self._zero, "check_overflow"):
            # The global norm already shows whether a gradient is not finite; DeepSpeed would also check each gradient.
            self._zero.check_overflow = lambda **_: None
        self.flats = self._find_flats()
        self.before_change: Callable[[], None] = lambda: None
        # If every rank holds all gradients, `step` reduces them: DeepSpeed would concatenate half a billion of them
        # first, and without ZeRO `step` also checks them before DeepSpeed uses them.
        self._reduces_whole = self.zero_stage == 0 or (self.zero_stage == 1 and config.precision == "bf16")
        self._gradients: GradientBlock | None = None
        if not self._reduces_whole and self.zero_stage <= 2 and not overlaps and parameters <= LARGEST_BUCKET:
            self._gradients = GradientBlock(self._zero, self._engine.data_parallel_group)
        if self._reduces_whole or self._gradients:
            self._engine.enable_backward_allreduce = False

    def _find_flats(self) -> list[Flat]:
        if self.zero_stage == 0:
            return replicated_flats(self.model, self._zero)
        if self.zero_stage == 3:
            return sliced_flats(self.model, self._zero, torch.distributed.get_rank())
        return grouped_flats(self.model, self._zero)

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    @property
    def module(self) -> Any:
        """The module itself; under ZeRO-3 its parameters are gathered only while it runs."""
        return self._engine.module

    def __call__(self, *inputs: Any) -> Any:
        """Run the module's forward pass."""
        return self._engine(*inputs)

    def set_lr(self, ratio: float) -> float:
        """Set every group's learning rate to `ratio` times its peak; returns the highest."""
        rates = [peak * scale * ratio for peak, scale in self._lr_scales]
        for group, rate in zip(self._zero.param_groups, rates, strict=True):
            group["lr"] = rate
        return max(rates)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar loss; `step` uses its average over ranks."""
        self._engine.backward(loss, scale_wrt_gas=False)
        if self._gradients:
            self._gradients.accumulate()

    def step(self) -> bool:
        """Clip the gradients, update the weights and clear the gradients. Collective.

        Returns False on every rank, with nothing changed, if the gradient was not finite.
        """
        self.before_change()
        if self._reduces_whole:
            self._engine.buffered_allreduce_fallback(elements_per_buffer=self._bucket_size)
        if self.zero_stage == 0:
            return self._replicated_step()
        if self._gradients:
            self._gradients.reduce_collective()
        self._engine.step()
        if self._gradients:
            self._gradients.clear()
        applied: bool = self._engine.was_step_applied()
        return applied

    def _replicated_step(self) -> bool:
        """The step without ZeRO, where DeepSpeed neither checks for infinities nor keeps the norm."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        self._engine._global_grad_norm = norm = torch.nn.utils.get_total_norm(gradients)
        if finite := bool(norm.isfinite()):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return finite

    def grad_norm(self) -> float:
        """Global gradient norm of the last step before clipping."""
        return float(self._engine.get_global_grad_norm())

    def refresh_collective(self) -> None:
        """Update the weights that the model computes with after the flats were modified."""
        if self.zero_stage in (1, 2):
            self._zero.update_lp_params()
        elif self.zero_stage == 3:
            self._zero._partition_all_parameters()
            for sub_group in range(len(self._zero.fp16_groups)):
                self._zero._reassign_or_swap_out_partitioned_parameters(sub_group)
            if persistent := self._zero.persistent_parameters:  # small parameters stay gathered between steps
                persistent[0].all_gather(persistent)

    @contextmanager
    def computing_with_collective(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Let the model compute with other weights, one tensor per flat; meanwhile these tensors hold its own."""
        self.before_change()
        self._swap_collective(weights)
        try:
            yield
        finally:
            self._swap_collective(weights)

    @torch.no_grad()
    def _swap_collective(self, weights: Sequence[Tensor]) -> None:
        """Swap the values of the flats with other tensors piece by piece, as a full copy might not fit into memory."""
        for flat, others in zip(self.flats, weights, strict=True):
            for mine, other in zip(flat.weights.split(SWAPPED_AT_ONCE), others.split(SWAPPED_AT_ONCE), strict=True):
                kept = mine.clone()
                mine.copy_(other)
                other.copy_(kept)
        self.refresh_collective()


def engine_settings(config: EngineConfig, *, clip_grad_norm: float, parameters: int, overlaps: bool) -> dict[str, Any]:
    """DeepSpeed's settings for a model with this many parameters; `overlaps`: reduce during the backward pass.

    Gradients of micro-batches and ranks are accumulated in fp32 regardless of the precision they are computed in: bf16
    would lose anything below 1/256 of the running sum. This makes DeepSpeed use its BF16_Optimizer for ZeRO-1 in bf16,
    with an fp32 gradient of every parameter on every rank.
    """
    return {
        # The caller splits a step into as many micro-batches as it needs and ends it with step().
        "managed_gradient_accumulation": False,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": clip_grad_norm,
        # Accumulate each gradient as soon as it is computed, which frees its bf16 memory.
        "bf16": {"enabled": config.precision == "bf16", "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": config.zero_stage,
            # Stages 0 and 1 reduce in `step`, after the backward pass that could hide the reduction.
            "overlap_comm": overlaps and config.zero_stage >= 2,
            "reduce_bucket_size": min(parameters, LARGEST_BUCKET),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": sys.maxsize,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device before every forward pass
    }
