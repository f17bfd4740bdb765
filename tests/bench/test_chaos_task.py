from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.bench.chaos_task import STAGE, losses_apart, resumed_from, rows_of, write_pipeline_of
from pipeline.bench.tasks import TASKS
from pipeline.config.load import load_config
from pipeline.stages.context import open_datasets
from pipeline.stages.folder import StageFolder


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_pipeline_with_its_data(task: str, tmp_path: Path) -> None:
    write_pipeline_of(task, tmp_path, tmp_path / "run")
    config = load_config(tmp_path / "run" / "pipeline.yaml")
    assert config.stages[STAGE].task.type == task
    train = open_datasets(config)["train"].index
    assert (train.num_samples, set(train.members)) == (96, {"class_id", "text"})


def stage(folder: Path, losses: list[float]) -> StageFolder:
    folder.mkdir()
    rows = [
        {"step": step, "time": 9.0, "speed/images_per_s": step, "train/loss": loss} for step, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 3, "val/x": 1}]))
    return StageFolder(folder)


def test_losses_are_compared_step_by_step(tmp_path: Path) -> None:
    one, other, short = (
        stage(tmp_path / str(number), losses)
        for number, losses in enumerate(([-4.0, 1.0, 2.0], [-4.0, 1.1, 2.0], [-4.0, 1.0]))
    )
    assert losses_apart(one, one) == 0
    assert losses_apart(one, other) == pytest.approx(0.1 / 4)
    assert losses_apart(one, short) == float("inf")
    assert rows_of(short) == [
        {"step": 0, "train/loss": -4.0},
        {"step": 1, "train/loss": 1.0},
        {"step": 3, "val/x": 1},
    ]


def test_the_last_resume_counts(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    folder.event("enlarged", "views")
    folder.event("resume", "goes on", step=12, steps_lost=3)
    assert resumed_from(folder) == 12
