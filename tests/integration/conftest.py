"""A miniature pipeline on real parts: Ray started once, synthetic shards, and `minivit` in its own process."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.bench.synthetic import CLASSES, SIDE, noise_png, write_shards

MINIVIT = Path(sys.executable).with_name("minivit")
WAIT_S = 280  # of a process; tens of seconds on a machine that does nothing else
START_CLUSTER = """
import sys, ray
ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@dataclass(frozen=True)
class Done:
    """How a `minivit` process ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def error(self) -> str:
        """The one line of the error. Fails if there is another, or a traceback."""
        assert self.code != 0, self.stdout + self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.stderr
        assert self.stderr.splitlines()[-1] == errors[0], self.stderr
        return errors[0]


@dataclass
class Workplace:
    """A folder to run `minivit` in, with the environment it needs to join the tests' cluster."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [MINIVIT, *arguments],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def minivit(self, *arguments: str, timeout_s: float = WAIT_S) -> Done:
        began = time.monotonic()
        process = self.start(*arguments)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        return Done(process.returncode, stdout, stderr, time.monotonic() - began)

    def write(self, config: dict[str, Any], name: str = "pipeline.yaml") -> str:
        (self.folder / name).write_text(yaml.safe_dump(config, sort_keys=False))
        return name

    def stage(self, run: str, stage_id: str) -> Path:
        return self.folder / "runs" / run / "stages" / stage_id

    def status(self, run: str, stage_id: str) -> dict[str, Any]:
        return json.loads((self.stage(run, stage_id) / "status.json").read_text())

    def rows(self, run: str, stage_id: str) -> list[dict[str, Any]]:
        """The whole lines of a stage's metrics file so far."""
        path = self.stage(run, stage_id) / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = WAIT_S) -> Any:
    """The first true value of `condition`, which is polled; fails if the process ends before."""
    due = time.monotonic() + timeout_s
    while time.monotonic() < due:
        if found := condition():
            return found
        assert process.poll() is None, f"ended too soon: {process.communicate()}"
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"nothing came within {timeout_s} s: {process.communicate()}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray cluster of three CPUs on loopback for all tests of this folder: environment that joins it."""
    # Without the last one, Ray uses 127.0.0.1 as the address of the network card, where nothing listens.
    joining = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    starting = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1"}
    starting |= {"OMPI_COMM_WORLD_LOCAL_RANK": "7", "LOCAL_RANK": "7", "WORLD_SIZE": "9"}  # as under `mpirun ray start`
    with subprocess.Popen(
        [sys.executable, "-c", START_CLUSTER],
        env=os.environ | joining | starting,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        assert address, "Ray did not start"
        yield joining | {"RAY_ADDRESS": address}
        head.stdin.close()
        head.wait(timeout=60)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training shards, a validation shard and two test shards of small grey images in four classes."""
    folder = tmp_path_factory.mktemp("made") / "shards"
    write_shards(folder)
    return folder


def pretrain(**changes: Any) -> dict[str, Any]:
    """A training stage of 12 steps on two workers; a thin nano."""
    stage: dict[str, Any] = {
        "type": "pretrain",
        "model": {"variant": "nano", "depth": 2, "image_size": SIDE, "patch_size": 4, "channels": 1},
        "data": {
            "train": "train",
            "val": "val",
            "lanes": 8,
            "window": 8,
            "augment": {"crop": "padded", "flip": False},
        },
        "duration": "12 steps",
        "global_batch_size": 16,
        "optimizer": {"lr": 3.0e-3},
        "ema": 0.9,
        "log_every": 4,
        "checkpoint": {"every": "4 steps"},
        "eval": {"every": "6 steps"},
    }
    return stage | changes


def config(shards: Path, name: str, stages: dict[str, Any]) -> dict[str, Any]:
    """A pipeline over the synthetic shards on two workers."""
    datasets = {
        split: {"shards": f"{shards}/{split}-*.tar", "mean": [0.4], "std": [0.3]} for split in ("train", "val", "test")
    }
    raw = {"name": name, "cluster": {"workers": 2}, "datasets": datasets, "stages": stages}
    return copy.deepcopy(raw)  # without aliases: a test may change one stage alone


def rank_processes(folder: Path) -> list[psutil.Process]:
    """The processes that write a rank's log below a stage's folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(Path(file.path).is_relative_to(folder / "logs") for file in process.open_files()):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def wait_until_gone(folder: Path) -> None:
    """Ranks outlive a killed driver for a moment; their writes must not interfere with the test."""
    due = time.monotonic() + WAIT_S
    while rank_processes(folder):
        assert time.monotonic() < due
        time.sleep(0.1)


class Kit:
    """Folders shared by the tests in this directory."""

    classes = CLASSES
    side = SIDE
    Workplace = Workplace
    noise_png = staticmethod(noise_png)
    pretrain = staticmethod(pretrain)
    config = staticmethod(config)
    wait_until = staticmethod(wait_until)
    rank_processes = staticmethod(rank_processes)
    wait_until_gone = staticmethod(wait_until_gone)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """A fresh folder without a cluster: for runs that must end before they need one."""
    return Workplace(tmp_path)


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory, cluster: dict[str, str]) -> Workplace:
    """A folder shared by the tests of a module, on the tests' cluster, with modules that ranks must not import."""
    folder = tmp_path_factory.mktemp("joined")
    for name in ("pipeline", "queue", "random", "torch"):
        (folder / f"{name}.py").write_text("raise SystemExit('a module of the user')\n")
    return Workplace(folder, cluster)
