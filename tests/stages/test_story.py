from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.metrics.accuracy import CLASSIFICATION
from pipeline.probe.interval import wilson
from pipeline.stages.folder import FINISHED, RunFolder, Status
from pipeline.stages.story import story_of


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two stages, the second of which starts from the first, and an evaluation of the second."""
    folder = RunFolder(tmp_path / "runs" / "quick")

    def finish(stage_id: str, kind: str, **status: Any) -> None:
        inputs = {
            "settings": {"data": {"train": "photos", "val": "held-out"}, "optimizer": {"lr": 0.001}},
            "seed": 3,
            "train": {"photos": {"digest": "aaaa"}},
            "val": {"digest": "bbbb"},
            "data": {"digest": "cccc"},
        }
        given = {"schema": CLASSIFICATION.to_dict(), "inputs": inputs, **status}
        folder.stage(stage_id).write_status(Status(FINISHED, kind, "d", **given))

    result = {"samples": 640, "val_samples": 50, "measures": {"loss": 0.4, "accuracy": 0.8}}
    finish("pretrain/nano", "pretrain", result=result)
    finish("finer", "finetune", init_from="pretrain/nano", result=result)
    (folder.stage("finer").path / "surgery.txt").write_text("9 copied, 1 resized\nmore\n")
    finish("evaluate", "evaluate")
    found = {
        "finer": {"accuracy": 0.75, "loss": 0.5, "samples": 200, "intervals": {"loss": [0.4, 0.6]}},
        "pretrain/nano": {"accuracy": 0.1, "samples": 200},
    }
    evaluation = {"name": "photos-test", "schema": CLASSIFICATION.to_dict(), "models": found}
    (folder.stage("evaluate").path / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


@pytest.mark.parametrize("place", ["finer", "finer/model"])
def test_a_model_s_stages_data_and_figures(run: RunFolder, place: str) -> None:
    (run.path / "stages" / "finer" / "model").mkdir()
    story = story_of(run.path / "stages" / place, "mit")
    assert (story.name, story.license) == ("quick", "mit")
    assert [(step.stage, step.source, step.samples, step.surgery) for step in story.steps] == [
        ("pretrain/nano", None, 640, None),
        ("finer", "pretrain/nano", 640, "9 copied, 1 resized"),
    ]
    assert story.steps[1].settings["seed"] == 3
    assert {(use.role, use.name, use.digest) for use in story.data} == {
        ("train", "photos", "aaaa"),
        ("val", "held-out", "bbbb"),
    }
    found = [(f.measure.name, f.value, f.data, f.digest, f.samples, f.interval, f.method) for f in story.figures]
    assert found == [
        ("accuracy", 0.8, "held-out (validation)", "bbbb", 50, wilson(40, 50), "Wilson"),
        ("loss", 0.4, "held-out (validation)", "bbbb", 50, None, ""),
        ("accuracy", 0.75, "photos-test (evaluate)", "cccc", 200, wilson(150, 200), "Wilson"),
        ("loss", 0.5, "photos-test (evaluate)", "cccc", 200, (0.4, 0.6), "bootstrap"),
    ]


def test_weights_of_checkpoints_have_no_figures(run: RunFolder) -> None:
    story = story_of(run.path / "stages" / "finer", finished=False)
    assert [step.stage for step in story.steps] == ["pretrain/nano", "finer"]
    assert story.figures == ()


def test_of_any_other_folder_nothing_is_known(tmp_path: Path) -> None:
    story = story_of(tmp_path / "export")
    assert (story.name, story.steps, story.figures) == (None, (), ())
