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


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_collectives_on_a_cpu_go_through_gloo() -> None:
    assert collective_backend() == "gloo"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_taken_where_there_is_one() -> None:
    assert (select_device().type, collective_backend()) == ("cuda", "nccl")


def test_precisions_are_dtypes() -> None:
    assert (precision_dtype("bf16"), precision_dtype("fp32")) == (torch.bfloat16, torch.float32)
