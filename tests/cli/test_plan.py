from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.plan import command
from pipeline.config.yaml_text import to_yaml
from pipeline.errors import ConfigError
from pipeline.forecast.known_hardware import KNOWN

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


def test_a_forecast_says_how_long_and_what_limits(config: str) -> None:
    arguments = [config, "--hardware", "h100", "--world-size", "16", "--mtbf", "1000"]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for expected in (
        "Forecast for h100",
        "limited by",
        "goodput",
        "every 20.8 d",
        "Assumptions",
        "data sheets of H100",
    ):
        assert expected in result.output


def test_a_forecast_reaches_the_json(config: str) -> None:
    arguments = [config, "--hardware", "a100", "--mtbf", "1000", "--json"]
    read = json.loads(CliRunner().invoke(command, arguments, catch_exceptions=False).output)
    assert read["machine"]["hardware"]["bf16_tflops"] == 312
    training = read["stages"][0]["training"]
    found = training["models"][0]["forecast"]
    assert (training["world_size"], found["nodes"], found["fits"]) == (8, 1, True)  # a node's GPUs, by default
    parts = ("compute_s", "exposed_s", "data_wait_s")
    assert found["step_s"] == pytest.approx(sum(found["step"][part] for part in parts))
    assert found["days"] == pytest.approx(7 * found["step_s"] / 86_400)
    assert 0 < found["failures"]["goodput"] <= found["failures"]["best_goodput"] < 1
    plain = json.loads(CliRunner().invoke(command, [config, "--json"], catch_exceptions=False).output)
    assert (plain["machine"], plain["stages"][0]["training"]["models"][0]["forecast"]) == (None, None)


def test_ranks_that_leave_a_node_half_empty_are_noted(config: str) -> None:
    arguments = [config, "--hardware", "h100", "--world-size", "12"]
    result = CliRunner(env={"COLUMNS": "160"}).invoke(command, arguments, catch_exceptions=False)
    assert "12 ranks leave 4 of the 16 places on 2 nodes of h100 empty; use a multiple of 8." in result.output


def test_a_file_describes_the_hardware(config: str) -> None:
    fields = KNOWN["l40s"].model_dump(exclude_defaults=True) | {"memory_gib": 1.0}
    Path("ours.yaml").write_text(to_yaml(fields))
    result = CliRunner(env={"COLUMNS": "160"}).invoke(command, [config, "--hardware", "ours.yaml"])
    assert "pretrain does not fit in memory; use more ranks" in result.output


def test_wrong_hardware_and_failures_are_refused(config: str) -> None:
    with pytest.raises(ConfigError, match=r"^--hardware: found 'v100', .*h100"):
        CliRunner().invoke(command, [config, "--hardware", "v100"], catch_exceptions=False)
    for arguments, message in (
        (["--hardware", "h100", "--mtbf", "-3"], "-3.0 is not in the range"),
        (["--mtbf", "1000"], "--mtbf: only applies to a forecast; add --hardware"),
    ):
        result = CliRunner().invoke(command, [config, *arguments])
        assert (result.exit_code, message in result.output) == (2, True)


@pytest.mark.parametrize("options", [[], ["--hardware", "h100", "--mtbf", "1000"], ["--hardware", "cpu"]])
def test_planning_needs_no_torch_and_no_two_seconds(config: str, options: list[str]) -> None:
    """Seconds of CPU time, including child processes, so that a busy machine makes little difference."""
    Path(config).write_text(f"{CONFIG}  export: {{type: export, model: pretrain, formats: [timm, hf]}}\n")
    program = (
        "import os, sys; from pipeline.cli.plan import command; command(sys.argv[1:], standalone_mode=False); "
        "print(sum(os.times()[:4]), sorted({'torch', 'ray', 'deepspeed', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, config, *options], capture_output=True, text=True, check=True)
    seconds, modules = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert modules == "[]"
    assert float(seconds) < 2
