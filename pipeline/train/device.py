"""The one place that chooses between a GPU and the CPU, and how a GPU computes."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from pipeline.errors import ClusterError


def select_device() -> torch.device:
    """The device of this process: its CUDA GPU if it can see one, else the CPU.

    `cluster.rank` hides the GPUs from ranks that asked for none, so what is visible is what was granted. DeepSpeed
    reads its own choice from the environment, which must be set before it is imported.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    os.environ["DS_ACCELERATOR"] = device.type
    return device


def take_gpu(granted: Callable[[], torch.device]) -> torch.device:
    """Make the GPU that the cluster granted the device of this thread. Raises `ClusterError` if torch cannot use it."""
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise ClusterError(
            f"cluster.gpus_per_worker: this rank was granted a GPU that PyTorch {torch.__version__}, built {built}, "
            "cannot use; install a driver or a PyTorch that fit each other, or set cluster.gpus_per_worker=0"
        )
    torch.cuda.set_device(granted())
    allow_tf32()
    return select_device()


def allow_tf32() -> None:
    """Let a GPU's tensor cores compute products of fp32 operands, several times as fast as its other units.

    They round operands to TF32, 10 bits of mantissa (a relative error of up to 2^-11 each), and sum in fp32. That is
    finer than bf16's 7 bits, in which stages train by default. Weights, gradients, optimiser and norms keep all bits of
    fp32; products in bf16, and CPUs, do as before.
    """
    torch.set_float32_matmul_precision("high")


def compute_deterministically() -> None:
    """From now on the same inputs give the same bits: no kernel whose sums depend on which thread comes first.

    Call it before the first product: cuBLAS reads its workspace once. https://pytorch.org/docs/stable/notes/randomness
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Nothing here reads what nothing has written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def collective_backend() -> str:
    """The torch.distributed back end of this process's device."""
    return "nccl" if select_device().type == "cuda" else "gloo"


def precision_dtype(precision: str) -> torch.dtype:
    """The dtype of weights and activations under a config's `engine.precision`."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
