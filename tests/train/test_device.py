from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.errors import ClusterError
from pipeline.train import device
from pipeline.train.device import (
    collective_backend,
    compute_deterministically,
    precision_dtype,
    select_device,
    take_gpu,
)

PACKAGE = Path(pipeline.__file__).parent
NEEDS_CARE = re.compile(r"torch\.(?:cuda|accelerator)\.\w+(?:\.\w+)*|pin_memory|non_blocking|\.cuda\(")
# Everything in the package that only a GPU carries out. `streams` is driven by a double of torch (test_streams,
# test_feed, test_saver); what stands elsewhere must be right at sight, as no machine without a GPU runs it.
ON_A_GPU_ALONE = {
    "bench/peaks.py": ["torch.cuda.get_device_name"],
    "bench/step_process.py": ["torch.accelerator.synchronize", "torch.cuda.max_memory_allocated"],
    "tasks/lejepa/sigreg.py": ["non_blocking"],
    "train/device.py": ["torch.cuda.current_device", "torch.cuda.is_available", "torch.cuda.set_device"],
    "train/streams.py": [
        "non_blocking",
        "pin_memory",
        "torch.cuda.Event",
        "torch.cuda.Stream",
        "torch.cuda.current_stream",
        "torch.cuda.set_device",
        "torch.cuda.stream",
    ],
}
# A new thread stands on GPU 0: one that touches the device says first on which it is.
THREAD = re.compile(r"threading\.Thread\(|Prefetcher\(|ThreadPoolExecutor\(")
THREADS_ON_THE_DEVICE = {
    "train/saver.py": "self._copies.enter_thread()",
    "train/feed.py": "prepare=copies.enter_thread",
}
THREADS_BESIDE_IT = {"train/stall.py"}  # they touch no device


def sources(folder: str = ".") -> dict[str, str]:
    """The package's files without their docstrings and comments, by path."""
    files = sorted((PACKAGE / folder).rglob("*.py"))
    return {str(path.relative_to(PACKAGE)): re.sub(r'"""(?s:.*?)"""|#.*', "", path.read_text()) for path in files}


def test_every_call_that_only_a_gpu_carries_out_is_known() -> None:
    found = {path: sorted(set(NEEDS_CARE.findall(text))) for path, text in sources().items()}
    assert {path: calls for path, calls in found.items() if calls} == ON_A_GPU_ALONE
    for calls in ON_A_GPU_ALONE.values():
        for call in calls:
            if call.startswith("torch."):
                place = torch
                for name in call.split(".")[1:]:
                    place = getattr(place, name)


def test_every_thread_of_a_rank_says_on_which_gpu_it_stands() -> None:
    found = {path: text for path, text in sources("train").items() if THREAD.search(text)}
    assert found.keys() == THREADS_ON_THE_DEVICE.keys() | THREADS_BESIDE_IT
    for path, call in THREADS_ON_THE_DEVICE.items():
        assert call in found[path]


@pytest.mark.parametrize("cuda", [False, True])
def test_deepspeed_is_told_of_the_choice(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment said before."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu" if cuda else "cuda")
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(device.torch.cuda, "current_device", lambda: 1)
    expected = torch.device("cuda", 1) if cuda else torch.device("cpu")
    assert select_device() == expected
    assert os.environ["DS_ACCELERATOR"] == expected.type
    assert collective_backend() == ("nccl" if cuda else "gloo")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_was_granted_and_cannot_be_used_is_no_silent_cpu() -> None:
    expected = r"^cluster\.gpus_per_worker: this rank was granted a GPU that PyTorch .* cannot use; install a driver"
    with pytest.raises(ClusterError, match=expected):
        take_gpu(lambda: torch.device("cuda", 0))


def test_the_granted_gpu_is_the_threads_and_computes_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[torch.device] = []
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch.cuda, "set_device", set_to.append)
    monkeypatch.setattr(device.torch.cuda, "current_device", lambda: set_to[-1].index)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    before = torch.get_float32_matmul_precision()
    try:
        assert take_gpu(lambda: torch.device("cuda", 3)) == torch.device("cuda", 3)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_deterministic_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        compute_deterministically()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_precisions_are_dtypes() -> None:
    assert (precision_dtype("bf16"), precision_dtype("fp32")) == (torch.bfloat16, torch.float32)
