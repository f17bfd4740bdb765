from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints.manifest import Manifest, MeterState, commit_manifest
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.shard_file import Span, write_shard
from pipeline.checkpoints.storage import LocalStorage, Storage

SHAPES = {"weight": [4, 3], "bias": [4], "shift": [5]}


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "checkpoints")


@pytest.fixture
def committed() -> Callable[..., str]:
    """Commits a checkpoint of three tensors, as two ranks would have, and returns its folder's name."""

    def commit(storage: Storage, step: int, *, digest: str = "d", metrics: dict[str, float] | None = None) -> str:
        folder = step_folder(step)
        weights = torch.arange(16, dtype=torch.float32) + 100 * step
        layout = [
            [[Span("weight", 0, 0, 12)], [Span("shift", 0, 0, 5)]],
            [[Span("bias", 0, 1, 4)]],  # the first value is padding
        ]
        tensors = [
            {"0/weights": weights[:12], "0/exp_avg": weights[:12] / 10, "0/step": torch.tensor(7.0)},
            {"0/weights": torch.cat([torch.zeros(1), weights[12:]]), "0/exp_avg": torch.zeros(5)},
        ]
        tensors[0]["1/weights"] = torch.arange(5) * step
        files = [
            write_shard(storage, f"{folder}/rank-{rank}.safetensors", layout[rank], tensors[rank]) for rank in (0, 1)
        ]
        window = MeterState(2, 0, [[1.0], [2.0]])
        manifest = Manifest(step, 8 * step, 2, 1, digest, {"variant": "nano"}, SHAPES, files, metrics or {}, window)
        commit_manifest(storage, folder, manifest)
        return folder

    return commit
