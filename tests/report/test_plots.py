from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import CheckpointError
from pipeline.report.plots import save_plots

CURVES = {f"curve-{slug}.png" for slug in ("loss", "accuracy", "top5", "lr", "size", "speed", "wait")}


def test_a_training_stage_has_curves_positions_and_its_confusion(built_run: Path, tmp_path: Path) -> None:
    files = save_plots(built_run, "finetune-56", tmp_path / "plots")
    positions = {f"positions-{slug}.png" for slug in ("before", "start", "end")}
    assert {file.name for file in files} == CURVES | positions | {"confusion-finetune-56.png"}
    for file in files:
        with Image.open(file) as picture:
            picture.verify()


def test_an_evaluate_stage_has_a_matrix_for_each_model(built_run: Path, tmp_path: Path) -> None:
    names = {file.name for file in save_plots(built_run, "test", tmp_path)}
    models = "pretrain-nano", "pretrain-micro", "finetune-56", "finetune-patch2"
    assert names == {f"confusion-{model}.png" for model in models}


def test_a_stage_that_has_not_started_has_none(unfinished_run: Path, tmp_path: Path) -> None:
    assert save_plots(unfinished_run, "finetune-56", tmp_path / "plots") == []


def test_an_unknown_stage_is_refused_with_the_known_ones(built_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pretrain/nano, pretrain/micro"):
        save_plots(built_run, "pretrain", tmp_path)
