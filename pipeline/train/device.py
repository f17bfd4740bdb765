"""The only place that chooses between GPU and CPU and configures how a GPU computes."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from pipeline.errors import ClusterError


def select_device() -> torch.device:
    """The device of this process: its CUDA GPU if one is visible, otherwise the CPU.

    `cluster.rank` hides the GPUs from ranks that requested none, so only granted GPUs are visible. DeepSpeed reads its
    device type from the environment, which must be set before DeepSpeed is imported.
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
            "cannot use; install a driver and a PyTorch that match, or set cluster.gpus_per_worker=0"
        )
    torch.cuda.set_device(granted())
    allow_tf32()
    return select_device()


def allow_tf32() -> None:
    """Let a GPU compute fp32 matrix products on its tensor cores, which is several times as fast.

    They round operands to TF32, with a 10-bit mantissa (a relative error of up to 2^-11 each), and accumulate in fp32.
    That is more precise than bf16 with 7 bits, the default precision of stages. Weights, gradients, optimiser and norms
    stay in full fp32; bf16 products and CPUs are unaffected.
    """
    torch.set_float32_matmul_precision("high")


def compute_deterministically() -> None:
    """Make results bitwise reproducible: use no kernel whose sums depend on thread order.

    Call it before the first matrix product, since cuBLAS reads its workspace setting once.
    https://pytorch.org/docs/stable/notes/randomness
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # This code never reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def collective_backend() -> str:
    """The torch.distributed backend for this process's device."""
    return "nccl" if select_device().type == "cuda" else "gloo"


def precision_dtype(precision: str) -> torch.dtype:
    """The dtype of weights and activations for a config's `engine.precision`."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
