"""A miniature pipeline to disturb: shards of noise with its label as brightness, a tiny model, a stage of each kind."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from pipeline.config.yaml_text import to_yaml
from pipeline.shards.build import write_index
from pipeline.shards.index import DatasetIndex, make_index
from pipeline.shards.write import ShardWriter
from pipeline.targets import tool_targets

CLASSES = ["black", "dark", "light", "white"]
MEMBERS = {"class_id": ("cls",)}
CAPTIONED = MEMBERS | {"text": ("txt",)}
SPLITS = (("train", 96, 48), ("val", 21, 21), ("test", 37, 20))  # samples, and samples per shard
SIDE = 16
NAME = "miniature"
RANK, RAYLET = "ray::RayTrainWorker", "raylet/raylet"


def write_shards(
    folder: Path, *, splits: Sequence[tuple[str, int, int]] = SPLITS, side: int = SIDE, captions: bool = False
) -> DatasetIndex:
    """Write small data sets of grey images, by default train, val and test, with or without captions."""
    folder.mkdir(parents=True)
    records, kinds = [], CAPTIONED if captions else MEMBERS
    for prefix, samples, samples_per_shard in splits:
        with ShardWriter(folder, prefix, samples_per_shard, tool_targets(kinds)) as writer:
            for number in range(samples):
                label = number % len(CLASSES)
                members = {"png": noise_png(label, number, side), "cls": str(label).encode()}
                if captions:
                    members["txt"] = f"a {CLASSES[label]} square, number {number}".encode()
                writer.write(f"{prefix}-{number}", members)
        records.extend(writer.records)
    index = make_index(str(folder), records, {"class_id": CLASSES}, members=kinds)
    write_index(index)
    return index


def noise_png(label: int, number: int, side: int = SIDE) -> bytes:
    noise = np.random.default_rng([label, number]).integers(0, 30, (side, side), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise + np.uint8(20 + 65 * label)).save(file, "PNG")
    return file.getvalue()


def write_config(folder: Path, shards: Path, steps: int, checkpoint_every: int) -> Path:
    """A pipeline that pretrains on two workers, evaluates and exports; every step is logged."""
    stages = {
        "pretrain": pretrain(steps, checkpoint_every),
        "evaluate": {"type": "evaluate", "models": ["pretrain"], "data": "test"},
        "export": {"type": "export", "model": "pretrain"},
    }
    return write_pipeline(folder, shards, stages)


def pretrain(steps: int, checkpoint_every: int) -> dict[str, Any]:
    """A pretraining stage of a tiny model."""
    return {
        "type": "pretrain",
        "model": {"variant": "nano", "depth": 2, "image_size": SIDE, "patch_size": 4, "channels": 1},
        "data": {"train": "train", "val": "val", "lanes": 8, "window": 8},
        "duration": f"{steps} steps",
        "global_batch_size": 64,
        "ema": 0.9,
        "log_every": 1,
        "checkpoint": {"every": f"{checkpoint_every} steps"},
        "eval": {"every": f"{max(steps // 4, 1)} steps"},
    }


def write_pipeline(folder: Path, shards: Path, stages: Mapping[str, Any]) -> Path:
    """Write a pipeline of these stages over the small data sets, on two workers."""
    named = [name for name, *_ in SPLITS]
    datasets = {name: {"shards": f"{shards}/{name}-*.tar", "mean": [0.4], "std": [0.3]} for name in named}
    path = folder / "pipeline.yaml"
    path.write_text(to_yaml({"name": NAME, "cluster": {"workers": 2}, "datasets": datasets, "stages": dict(stages)}))
    return path


def start_driver(folder: Path, *overrides: str) -> psutil.Popen:
    """Start the folder's pipeline with one thread per rank; its output is appended to `driver.log`."""
    command = [sys.executable, "-m", "pipeline.cli.main", "run", "pipeline.yaml", *overrides]
    with (folder / "driver.log").open("a") as log:
        return psutil.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def processes_named(driver: psutil.Popen, name: str) -> list[psutil.Process]:
    """Descendants of the driver whose command contains a name: `RANK` or `RAYLET`."""
    return [child for child in driver.children(recursive=True) if name in " ".join(child.cmdline()[:1])]
