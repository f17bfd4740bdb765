"""Tests for a machine with one GPU, in at most ten minutes: `launch/test.sh -m gpu`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Results = list[dict[str, Any]]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def ranks_on(
    run_ranks: Callable[..., Results], tmp_path_factory: pytest.TempPathFactory, device: torch.device
) -> Callable[..., Results]:
    """Runs cases of `rank_program.py` on this many ranks, which share the GPU or run on the CPU."""

    def run(world_size: int, cases: dict[str, Any], *, cpu: bool = False) -> Results:
        folder: Path = tmp_path_factory.mktemp("ranks") / "of"
        return run_ranks(world_size, folder, cases, "cpu" if cpu else device.type)

    return run
