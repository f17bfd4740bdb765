"""DeepSpeed ZeRO behind a small surface; the only place that imports it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import EngineConfig
from pipeline.errors import CheckpointError

UNIVERSAL_SUFFIX = "-universal"
CONVERTIBLE_STAGES = {1, 2}


class Engine:
    """A model and its optimiser, partitioned over all ranks by ZeRO (Rajbhandari et al. 2020).

    Methods named `*_collective` must be called by every rank with the same arguments.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: EngineConfig, *, clip_grad_norm: float
    ) -> None:
        # DeepSpeed compiles its shared-memory collectives with the ninja of this environment, activated or not.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.WARNING)
        self.zero_stage = config.zero_stage
        self._lr_scales = [(group["lr"], group.get("lr_scale", 1.0)) for group in optimizer.param_groups]
        self._settings: dict[str, Any] = {
            # The caller splits a step into as many micro-batches as it needs and says where it ends by step().
            "managed_gradient_accumulation": False,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": clip_grad_norm,
            "bf16": {"enabled": config.precision == "bf16"},
            "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": sys.maxsize,
        }
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=self._settings)

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    @property
    def module(self) -> nn.Module:
        """The model itself; under ZeRO-3 its parameters are there only while it runs."""
        return self._engine.module

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, K] of normalised images [B, C, H, W]."""
        return self._engine(images)

    def set_lr(self, ratio: float) -> float:
        """Set every group's learning rate to `ratio` of its peak; returns the highest."""
        rates = [peak * scale * ratio for peak, scale in self._lr_scales]
        for group, rate in zip(self._engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return max(rates)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss; DeepSpeed averages it over ranks."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> None:
        """Clip, update the weights and forget the gradients. Collective."""
        self._engine.step()

    def grad_norm(self) -> float | None:
        """Global gradient norm of the last step, before clipping; ZeRO-0 does not keep it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save_collective(self, folder: Path) -> None:
        """Write this engine's shards into `folder`, which is named by its step."""
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)

    def load_collective(self, folder: Path, *, saved_world_size: int, saved_zero_stage: int) -> None:
        """Take weights and optimiser state from a committed checkpoint.

        One that was written by another world size, or by the other of ZeRO-1 and 2, is converted through DeepSpeed's
        universal format first; the result is kept beside it. Raises `CheckpointError` where that would not be exact:
        under ZeRO-3 DeepSpeed 0.19 gives back other moments for some parameter groups.
        """
        replicated = self.zero_stage == 0  # nothing is split, so nothing depends on the number of ranks
        same_split = replicated or saved_world_size == torch.distributed.get_world_size()
        same = same_split and saved_zero_stage == self.zero_stage
        if not same and not {saved_zero_stage, self.zero_stage} <= CONVERTIBLE_STAGES:
            raise CheckpointError(
                f"{folder} was written by {saved_world_size} workers under ZeRO-{saved_zero_stage} and goes on only "
                f"so; set cluster.workers: {saved_world_size} and engine.zero_stage: {saved_zero_stage} "
                "(only ZeRO-1 and 2 convert)"
            )
        source = folder if same else self._universal_collective(folder)
        self._engine.load_checkpoint_universal = not same
        self._engine._config.load_universal_checkpoint = not same
        loaded, _ = self._engine.load_checkpoint(str(source.parent), tag=source.name)
        if loaded is None:
            raise CheckpointError(f"DeepSpeed found nothing to load in {source}; see `minivit checkpoints verify`")

    def _universal_collective(self, folder: Path) -> Path:
        target = folder.with_name(folder.name + UNIVERSAL_SUFFIX)
        failure = [""]
        if torch.distributed.get_rank() == 0 and not target.exists():
            partial = target.with_name(target.name + ".partial")
            command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
            command += ["--input_folder", str(folder), "--output_folder", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                partial.rename(target)
            else:
                failure[0] = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
        torch.distributed.broadcast_object_list(failure)
        if failure[0]:
            raise CheckpointError(f"{folder} could not be converted for this number of workers: {failure[0]}")
        return target

    def full_state_collective(self) -> dict[str, Tensor]:
        """The whole model in fp32 on the CPU, from the master weights. Same on every rank."""
        from deepspeed.utils import safe_get_full_fp32_param

        def whole(parameter: nn.Parameter) -> Tensor:
            master = safe_get_full_fp32_param(parameter)
            return (parameter.detach() if master is None else master).float().cpu().clone()

        state = {name: whole(parameter) for name, parameter in self.module.named_parameters()}
        return state | {name: buffer.detach().cpu().clone() for name, buffer in self.module.named_buffers()}
