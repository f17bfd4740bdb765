from __future__ import annotations

import os

import pytest
import torch

from pipeline.train.device import collective_backend, precision_dtype, select_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_deepspeed_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    assert select_device() == torch.device("cpu")
    assert os.environ["DS_ACCELERATOR"] == "cpu"


def test_choices_follow_the_resources() -> None:
    assert (collective_backend(0), collective_backend(1)) == ("gloo", "nccl")
    assert (precision_dtype("bf16"), precision_dtype("fp32")) == (torch.bfloat16, torch.float32)
