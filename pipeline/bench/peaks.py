"""The measured processor and its peak FLOP/s."""

from __future__ import annotations

import os
import re

import torch

from pipeline.errors import ClusterError
from pipeline.forecast.known_hardware import KNOWN
from pipeline.train.device import select_device

# Dense bf16 TFLOP/s of the tensor cores, accumulating in fp32, from NVIDIA's data sheets; the first match wins. Figures
# that a sheet gives "with sparsity" are halved.
BF16_TFLOPS = {
    "H200": 989.5,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H100": KNOWN["h100"].bf16_tflops,
    "A100": KNOWN["a100"].bf16_tflops,
    "L40S": KNOWN["l40s"].bf16_tflops,
    "A40": 149.7,
    "A10": 125.0,
    "L4": 121.0,
}
TF32_SHARE = 0.5  # of bf16's rate, on all of these


def choose_device(wanted: str | None) -> torch.device:
    """The device to measure on, also for processes started from here; by default a GPU if there is one."""
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    device = select_device()
    if wanted == "cuda" and device.type != "cuda":
        raise ClusterError(
            f"--device cuda: PyTorch {torch.__version__} finds no usable GPU here; check `nvidia-smi`, or use "
            "--device cpu"
        )
    return device


def processor_name(device: torch.device) -> str:
    """The model name of a GPU; "CPU" otherwise."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_flops_per_s(processor: str, precision: str, bf16_tflops: float | None = None) -> float | None:
    """Peak FLOP/s of a processor's tensor cores in a precision; fp32 means TF32.

    `bf16_tflops` overrides the table. None if the peak is unknown.
    """
    known = (tflops for name, tflops in BF16_TFLOPS.items() if re.search(rf"\b{name}\b", processor))
    tflops = bf16_tflops or next(known, None)
    return None if tflops is None else 1e12 * tflops * (1.0 if precision == "bf16" else TF32_SHARE)
