"""Every config in `configs/` loads, opens with its run command, and can be planned without its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.stages.planner import plan

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_and_plans_without_data(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    result = plan(config)
    assert len(result.stages) >= len(config.stages)
    assert all(stage.training.models for stage in result.stages if stage.training)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_opens_with_its_run_command(path: Path) -> None:
    comment = path.read_text().split("\nname:")[0]
    assert all(line.startswith("#") or not line for line in comment.splitlines())
    assert f"launch/pretrain.sh configs/{path.name}" in comment


def test_there_are_configs() -> None:
    assert {"imagenet_vit_s16"} <= {path.stem for path in CONFIGS}
