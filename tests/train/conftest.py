"""A process group of one rank, and a double of torch with GPUs. Several ranks: `run_ranks`, in the folder above."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two GPUs, as `pipeline.train.streams` sees them; see `cuda_double.py`."""
    double = runpy.run_path(str(Path(__file__).with_name("cuda_double.py")))["Torch"]()
    monkeypatch.setattr("pipeline.train.streams.torch", double)
    return double
