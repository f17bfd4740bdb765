"""Process groups for tests: one rank in this process, or several in processes of their own; real gloo and DeepSpeed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

PROGRAM = Path(__file__).with_name("rank_program.py")
RANKS_TIMEOUT_S = 280


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def program() -> SimpleNamespace:
    """The names of `rank_program.py`."""
    return SimpleNamespace(**runpy.run_path(str(PROGRAM)))


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two GPUs, as `pipeline.train.streams` sees them; see `cuda_double.py`."""
    double = runpy.run_path(str(Path(__file__).with_name("cuda_double.py")))["Torch"]()
    monkeypatch.setattr("pipeline.train.streams.torch", double)
    return double


@pytest.fixture(scope="session")
def run_ranks() -> Callable[[int, Path, dict[str, Any]], list[dict[str, Any]]]:
    """Runs cases of `rank_program.py` on so many ranks; returns each rank's results by case."""

    def run(world_size: int, folder: Path, cases: dict[str, Any]) -> list[dict[str, Any]]:
        folder.mkdir()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [str(world_size), str(folder), json.dumps(cases)]
        ranks = [
            subprocess.Popen(
                [sys.executable, PROGRAM, str(rank), *command],
                env=environment,
                stdout=(folder / f"rank-{rank}.log").open("w"),
                stderr=subprocess.STDOUT,
            )
            for rank in range(world_size)
        ]
        try:
            due = time.monotonic() + RANKS_TIMEOUT_S
            while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
                assert time.monotonic() < due, f"{world_size} ranks took over {RANKS_TIMEOUT_S} s"
                time.sleep(0.1)
        finally:
            for rank in ranks:
                rank.kill()  # the peers of one that failed would wait for it
        outputs = [(folder / f"rank-{rank}.log").read_text() for rank in range(world_size)]
        assert [rank.wait() for rank in ranks] == [0] * world_size, "\n".join(outputs)
        return [torch.load(folder / f"rank-{rank}.pt") for rank in range(world_size)]

    return run
