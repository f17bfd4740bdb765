from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.config.load import parse_config
from pipeline.metrics.pictures import save_picture
from pipeline.stages.context import RunContext, open_datasets
from pipeline.stages.resolve import stage_branches
from pipeline.stages.types.train.run import TrainStageRun
from pipeline.train.ledger import MetricsLedger


@pytest.fixture
def stage(context: RunContext, make_shards: Callable[..., None], raw: dict[str, Any]) -> TrainStageRun:
    """The first branch of the pipeline, which has not run."""
    for prefix in ("train", "test"):
        make_shards(prefix, 96, 48, [f"class {label}" for label in range(10)])
        del raw["datasets"][prefix]["make"]
    context.config = parse_config(raw, "c")
    context.datasets = open_datasets(context.config)
    branch = next(branch for branch in stage_branches(context.config) if branch.id == "pretrain/nano")
    stage = TrainStageRun(context, branch)
    stage.folder.path.mkdir(parents=True)
    return stage


def result(stage: TrainStageRun, rows: list[tuple[int, dict[str, float]]]) -> dict[str, Any]:
    ledger = MetricsLedger(stage.folder.path, 0)
    for step, row in rows:
        ledger.append(step, step * 16, row)
    ledger.close()
    return stage._result(SimpleNamespace(total_steps=9))


def test_a_stage_leaves_what_its_first_and_last_validations_measured(stage: TrainStageRun) -> None:
    first = {"val/loss": 2.0, "val/accuracy": 0.25, "val/samples": 96.0}
    last = {"val/loss": 1.0, "val/accuracy": 0.5, "val/samples": 96.0}
    rows = [(0, first), (5, {"train/loss": 1.5, "speed/images_per_s": 7.0}), (9, last), (9, {"data/bad_samples": 0.0})]
    found = result(stage, rows)
    assert found["start"] == {"loss": 2.0, "accuracy": 0.25}
    assert found["measures"] == {"loss": 1.0, "accuracy": 0.5}
    assert found["images_per_s"] == 7.0


def test_a_stage_without_validation_has_no_measures(stage: TrainStageRun) -> None:
    found = result(stage, [(9, {"train/loss": 1.5})])
    assert (found["start"], found["measures"]) == (None, {})


def test_pictures_that_a_stage_leaves_are_tracked(stage: TrainStageRun) -> None:
    folder = stage.folder.path
    assert (folder / "pictures", "pictures") not in stage.artifacts()
    save_picture(folder, "one", np.zeros((2, 2), np.uint8), "title", "caption")
    assert (folder / "pictures", "pictures") in stage.artifacts()


def test_weights_are_tracked_once_as_the_logged_model(stage: TrainStageRun) -> None:
    assert stage.folder.model not in {path for path, _ in stage.artifacts()}
