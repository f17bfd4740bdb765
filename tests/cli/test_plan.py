from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.plan import command
from pipeline.errors import ConfigError

CONFIG = """
name: quick
datasets:
  train: {shards: data/train-*.tar, make: fashion-mnist, mean: [0.5], std: [0.5]}
stages:
  pretrain:
    type: pretrain
    model: {variant: nano, image_size: 28, channels: 1}
    data: {train: train}
    duration: 7 steps
    global_batch_size: 128
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("quick.yaml").write_text(CONFIG)
    return "quick.yaml"


def test_prints_tables(config: str) -> None:
    result = CliRunner().invoke(command, [config], catch_exceptions=False)
    assert result.exit_code == 0
    for expected in ("pretrain", "will be made", "Memory per rank", "ZeRO 3", "896"):
        assert expected in result.output


def test_overrides_and_world_size_reach_the_json(config: str) -> None:
    arguments = [config, "stages.pretrain.model.variant=[nano, micro]", "--world-size", "4", "--json", "seed=3"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    read = json.loads(result.output)
    assert [stage["id"] for stage in read["stages"]] == ["pretrain/nano", "pretrain/micro"]
    assert read["stages"][0]["training"]["world_size"] == 4


def test_a_refused_config_is_a_config_error(config: str) -> None:
    with pytest.raises(ConfigError, match=r"^quick\.yaml: stages\.pretrain\.global_batch_size: 100 is not divisible"):
        CliRunner().invoke(command, [config, "stages.pretrain.global_batch_size=100"], catch_exceptions=False)


def test_planning_needs_no_torch(config: str) -> None:
    program = (
        "import sys; from pipeline.cli.plan import command; command([sys.argv[1]], standalone_mode=False); "
        "print(sorted({'torch', 'ray', 'deepspeed', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, config], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
