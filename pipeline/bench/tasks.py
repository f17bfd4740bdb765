"""Settings of the tasks that benchmarks train, for images of any size, and the teacher that one of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config.fields import allowed
from pipeline.errors import ConfigError
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec

TEACHER = "teacher"  # stands for the path of a bundle
LOCAL_SIDE = 3 / 7  # of the global views', such as 96 of 224 px
VIEWS = {"global": {"count": 2}, "local": {"count": 4}}
TASKS: dict[str, dict[str, Any]] = {
    "classification": {},
    "mae": {},
    "simmim": {},
    "clip": {"text": {"length": 16}, "tokenizer": {"size": 300}},
    "lejepa": {"views": VIEWS},
    "simdino": {"views": VIEWS, "patch_loss": {"mask_ratio": 0.3}},
    "distillation": {"teacher": TEACHER},
}


def known_tasks(names: Sequence[str]) -> list[str]:
    """The names, or all of `TASKS` if there are none. Raises ConfigError for an unknown name."""
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"--task: found {name!r}, {allowed(name, list(TASKS))}")
    return list(names or TASKS)


def task_settings(name: str, side: int, patch: int, teacher: Path) -> dict[str, Any]:
    """The `task` section of one of `TASKS`, for square images of `side` pixels; `teacher` is a bundle's folder."""
    settings = {"type": name, **TASKS[name]}
    if "teacher" in settings:
        settings["teacher"] = str(teacher)
    if "views" in settings:
        local = max(round(side * LOCAL_SIDE / patch), 1) * patch
        settings["views"] = {**settings["views"], "local": {**settings["views"]["local"], "size": local}}
    return settings


def write_teacher(folder: Path, spec: ModelSpec, preprocess: Preprocess, classes: list[str]) -> None:
    """Write the bundle of a classifier with initial weights."""
    torch.manual_seed(1)
    Bundle(MiniViT.from_spec(spec).state_dict(), spec, preprocess, classes).save(folder)
