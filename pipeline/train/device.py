"""The one place that chooses between an accelerator and the CPU."""

from __future__ import annotations

import os

import torch


def select_device() -> torch.device:
    """The device of this process: its CUDA GPU if it can see one, else the CPU.

    Ray hides the GPUs from workers that asked for none, so what is visible is what was granted.
    DeepSpeed reads its own choice from the environment, which must be set before it is imported.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    os.environ["DS_ACCELERATOR"] = "cpu"
    return torch.device("cpu")


def collective_backend() -> str:
    """The torch.distributed back end of this process's device."""
    return "nccl" if select_device().type == "cuda" else "gloo"


def precision_dtype(precision: str) -> torch.dtype:
    """The dtype of weights and activations under a config's `engine.precision`."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
