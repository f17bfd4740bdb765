from __future__ import annotations

import copy
from typing import Any

import pytest

PIPELINE: dict[str, Any] = {
    "name": "quick",
    "datasets": {"train": {"shards": "data/train-*.tar", "mean": [0.5], "std": [0.5]}, "test": {"shards": "data/test"}},
    "stages": {
        "pretrain": {
            "type": "pretrain",
            "model": {"variant": ["nano", "micro"], "image_size": 28, "channels": 1},
            "data": {"train": "train", "val": "test"},
            "duration": "2 epochs",
            "global_batch_size": 128,
        },
        "finetune": {
            "type": "finetune",
            "init_from": "pretrain",
            "model": {"image_size": 56, "channels": 1},
            "data": {"train": "train"},
            "duration": "500 steps",
            "global_batch_size": 64,
            "optimizer": {"lr": 0.001},
        },
        "evaluate": {"type": "evaluate", "models": ["pretrain/nano", "finetune"], "data": "test"},
        "export": {"type": "export", "model": "finetune"},
        "report": {"type": "report"},
    },
}


@pytest.fixture
def raw() -> dict[str, Any]:
    """A pipeline with a fan-out, as plain data that a test may change."""
    return copy.deepcopy(PIPELINE)
