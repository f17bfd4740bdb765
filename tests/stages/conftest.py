from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.reservations import Cluster
from pipeline.config.load import parse_config
from pipeline.config.schema import PipelineConfig, TrackingConfig
from pipeline.shards.build import write_index
from pipeline.shards.index import make_index
from pipeline.shards.write import ShardWriter
from pipeline.stages.context import RunContext, open_datasets
from pipeline.stages.folder import RunFolder
from pipeline.stages.progress import Progress
from pipeline.stages.stop import StopRequest
from pipeline.targets import tool_targets
from pipeline.tracking.runs import Tracker
from pipeline.tracking.store import choose_store

PIPELINE: dict[str, Any] = {
    "name": "quick",
    "cluster": {"workers": 1},
    "datasets": {
        "train": {"shards": "data/train-*.tar", "make": "fashion-mnist", "mean": [0.5], "std": [0.5]},
        "test": {"shards": "data/test-*.tar", "make": "fashion-mnist", "mean": [0.5], "std": [0.5]},
    },
    "stages": {
        "report": {"type": "report"},
        "pretrain": {
            "type": "pretrain",
            "model": {"variant": ["nano", "micro"], "image_size": 28, "channels": 1},
            "data": {"train": "train", "val": "test", "lanes": 8, "window": 4},
            "duration": "3 epochs",
            "global_batch_size": 16,
        },
        "larger": {
            "type": "finetune",
            "init_from": "pretrain",
            "model": {"image_size": 56, "channels": 1},
            "data": {"train": "train", "lanes": 8},
            "duration": "5 steps",
            "global_batch_size": 16,
        },
        "finer": {
            "type": "finetune",
            "init_from": "larger",
            "model": {"image_size": 28, "patch_size": 2, "channels": 1},
            "data": {"train": "train", "lanes": 8},
            "duration": "100 samples",
            "global_batch_size": 16,
            "resolution": {"mode": "random", "sizes": [20, 28, 36]},
        },
        "evaluate": {"type": "evaluate", "models": ["pretrain/nano", "finer"], "data": "test"},
        "export": {"type": "export", "model": "finer"},
    },
}


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this machine's devices: no GPU is among them, until a test puts one there."""
    folder = tmp_path / "dev"
    folder.mkdir()
    monkeypatch.setattr("pipeline.cluster.resources.DEVICES", folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


@pytest.fixture
def raw() -> dict[str, Any]:
    """A pipeline with a fan-out and two fine-tuning stages, as plain data that a test may change."""
    return copy.deepcopy(PIPELINE)


@pytest.fixture
def config(raw: dict[str, Any]) -> PipelineConfig:
    return parse_config(raw, "c.yaml")


@pytest.fixture
def make_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes `data/PREFIX-*.tar` with an index into the current folder, which is a temporary one."""
    monkeypatch.chdir(tmp_path)
    records = []

    def make(prefix: str, samples: int, samples_per_shard: int, classes: list[str] | None) -> None:
        folder = tmp_path / "data"
        members = {"class_id": ("cls",)}
        with ShardWriter(folder, prefix, samples_per_shard, tool_targets(members)) as writer:
            for number in range(samples):
                writer.write(f"{prefix}-{number}", {"png": b"not decoded here", "cls": str(number % 10).encode()})
        records.extend(writer.records)
        write_index(make_index(str(folder), records, classes and {"class_id": classes}, members=members))

    return make


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("tracking")
    return Tracker(choose_store(TrackingConfig(), folder, {}, {}))


@pytest.fixture
def context(config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Tracker) -> RunContext:
    """A run in which nothing has finished yet."""
    monkeypatch.chdir(tmp_path)
    cluster, progress = Cluster("this machine", list), Progress()
    return RunContext(
        config, RunFolder(Path("runs/quick")), lambda: cluster, tracker, "parent", progress, StopRequest(progress)
    )


@pytest.fixture
def context_with_shards(context: RunContext, make_shards: Callable[..., None], raw: dict[str, Any]) -> RunContext:
    """The same, with its data sets as shards that exist."""
    make_shards("train", 96, 48, [f"class {label}" for label in range(10)])
    make_shards("test", 20, 20, [f"class {label}" for label in range(10)])
    for settings in raw["datasets"].values():
        del settings["make"]
    context.config = parse_config(raw, "c")
    context.datasets = open_datasets(context.config)
    return context
