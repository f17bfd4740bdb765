"""A teacher that differs from the student in every way that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_backbone, build_spec
from pipeline.tasks.base import TaskModule
from pipeline.tasks.distillation import Task

CLASSES = ["cat", "dog", "emu"]
OURS, THEIRS = Preprocess((0.5,), (0.5,), 1, (8, 8)), Preprocess((0.3,), (0.2,), 1, (12, 12))


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """The bundle of a classifier of 12 px in patches of 3, 48 wide, which knows one class more in another order."""
    torch.manual_seed(1)
    spec = build_spec(
        "nano", image_size=12, patch_size=3, num_classes=4, channels=1, depth=2, embed_dim=48, num_heads=2
    )
    state = {key: value + 0.1 * torch.randn_like(value) for key, value in MiniViT.from_spec(spec).state_dict().items()}
    return str(Bundle(state, spec, THEIRS, ["emu", "cow", "cat", "dog"]).save(tmp_path / "teacher"))


@pytest.fixture
def student(teacher: str) -> Callable[..., TaskModule]:
    """The task of a small model of 8 px in patches of 4, without dropout, with the settings that are given."""

    def make(**settings: Any) -> TaskModule:
        torch.manual_seed(0)
        task = Task(teacher=teacher, **settings)
        backbone = build_backbone(
            "nano", image_size=8, channels=1, depth=2, embed_dim=32, num_heads=2, **task.backbone_fields()
        )
        spec = task.model_spec(backbone, 3, load_bundle(Path(teacher), weights=False).spec)
        module = task.module(MiniViT.from_spec(spec), CLASSES if task.targets else [], OURS)
        return module.train()

    return make
