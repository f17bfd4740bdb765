from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli.main import cli
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
IMAGENET = str(ROOT / "configs" / "imagenet_vit_s16.yaml")
NEEDED = ["--image", "minivit:cpu", "--claim", "work", "--cpus", "12", "--memory", "64Gi"]


def manifest(*arguments: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    done = CliRunner().invoke(cli, ["launch", "kubernetes", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    config, job = yaml.safe_load_all(done.stdout)
    return config, job, done.stderr


def test_overrides_go_into_the_config_that_the_pods_read(tmp_path: Path) -> None:
    from pipeline.config.load import load_config

    overrides = ["seed=7", "cluster.workers=3"]
    config, job, _ = manifest(QUICKSTART, *overrides, *NEEDED)
    (tmp_path / "pipeline.yaml").write_text(config["data"]["pipeline.yaml"])
    assert load_config(tmp_path / "pipeline.yaml") == load_config(QUICKSTART, overrides)
    assert job["metadata"]["name"] == "quickstart"


def test_the_config_says_how_many_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    _, job, told = manifest(IMAGENET, *NEEDED, "--gpus", "1")
    [workers] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] == 8
    assert "the volume of the claim work must contain data/imagenet/train-*.tar (datasets.train.shards)" in told


def test_variables_and_what_they_hold_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PASSWORD", "hush")
    config, *_ = manifest(QUICKSTART, "tracking.uri=https://me:$MLFLOW_PASSWORD@mlflow", *NEEDED, "--pods", "1")
    assert "hush" not in str(config)
    assert "$MLFLOW_PASSWORD" in config["data"]["pipeline.yaml"]


def test_out_names_a_file(tmp_path: Path) -> None:
    out = tmp_path / "job.yaml"
    command = ["launch", "kubernetes", QUICKSTART, *NEEDED, "--pods", "1", "--out", str(out)]
    assert CliRunner().invoke(cli, command).stdout == ""
    assert len(list(yaml.safe_load_all(out.read_text()))) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([IMAGENET], "stages.pretrain: needs a GPU per worker, but --gpus is 0"),
        ([QUICKSTART], "stages.pretrain: found workers: auto, which does not say how many pods to request"),
        ([QUICKSTART, "name=My_Run", "--pods", "1"], "--name: found 'My_Run', expected at most 47"),
        ([QUICKSTART, "--pods", "1", "--namespace", "Team A"], "--namespace: found 'Team A'"),
        ([QUICKSTART, "runs_dir=/scratch/runs", "--pods", "1"], "runs_dir: found '/scratch/runs', which is not"),
        (
            [QUICKSTART, "datasets.train.shards=../shards", "--pods", "1"],
            "datasets.train.shards: found '../shards'",
        ),
        (
            [QUICKSTART, "tracking.uri=https://me:hush@host", "--pods", "1"],
            "tracking.uri: contains a password or token",
        ),
        ([QUICKSTART, "seeds=1", "--pods", "1"], "seeds"),
        (["no-such.yaml"], "no-such.yaml"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(cli, ["launch", "kubernetes", *arguments, *NEEDED])
    assert isinstance(done.exception, ConfigError)
    assert sentence in str(done.exception)
    assert "\n" not in str(done.exception)
    assert "hush" not in str(done.exception)
    assert done.stdout == ""
