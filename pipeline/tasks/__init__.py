"""Tasks: what a model is trained to do. One file per task, found by the `type` of a stage's `task` section."""

from __future__ import annotations

from pipeline.config.training import ClassificationConfig
from pipeline.tasks.classification import Classification

TASKS = {ClassificationConfig: Classification}


def build_task(config: ClassificationConfig, num_classes: int) -> Classification:
    """The task a stage's `task` section describes."""
    return TASKS[type(config)](config, num_classes)
