from __future__ import annotations

import os

import pytest
import torch

from pipeline.bench.peaks import choose_device, peak_flops_per_s, processor_name
from pipeline.errors import ClusterError


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362.05),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, tflops: float) -> None:
    assert peak_flops_per_s(name, "bf16") == tflops * 1e12
    assert peak_flops_per_s(name, "fp32") == tflops * 1e12 / 2
    assert peak_flops_per_s(name, "bf16", 500.0) == 500e12


@pytest.mark.parametrize("name", ["CPU", "NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090"])
def test_what_is_not_in_the_table_has_no_peak_but_a_given_one(name: str) -> None:
    assert peak_flops_per_s(name, "bf16") is None
    assert peak_flops_per_s(name, "bf16", 70.0) == 70e12


def test_the_cpu_may_be_measured_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders run in their own processes, which inherit the choice."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(os.environ["CUDA_VISIBLE_DEVICES"]))
    assert choose_device("cpu") == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert processor_name(torch.device("cpu")) == "CPU"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert choose_device(None) == torch.device("cpu")
    with pytest.raises(ClusterError, match=r"^--device cuda: PyTorch .* finds no usable GPU here; .*--device cpu$"):
        choose_device("cuda")
