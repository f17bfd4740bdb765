from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from pipeline.cluster.rank import RanksBackend, take_device
from pipeline.errors import ClusterError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As it was, afterwards."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_rank_that_asked_for_no_gpu_computes_on_none_that_it_can_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert take_device(1, 0) == torch.device("cpu")
    assert torch.get_num_threads() == 1


def test_a_rank_whose_gpu_cannot_be_used_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterError, match=r"^cluster\.gpus_per_worker: this rank was granted a GPU that PyTorch"):
        take_device(1, 1)


def test_ranks_see_each_others_gpus() -> None:
    """NCCL copies from one to the other."""
    assert RanksBackend.share_cuda_visible_devices
