"""Whole runs with a rank on the GPU: the quickstart, and a run that is killed and resumes bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

import pipeline
from pipeline.bench.synthetic import NAME, RANK, processes_named, start_driver, write_config, write_shards
from pipeline.train.ledger import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

REPOSITORY = Path(pipeline.__file__).parent.parent
MINIVIT = Path(sys.executable).with_name("minivit")
WAIT_S = 240
STEPS, KILLED_FROM = 60, 20
TIMES = ("time", "speed/")


def test_the_quickstart_with_a_rank_on_the_gpu(tmp_path: Path, device: torch.device) -> None:
    gpus = int(device.type == "cuda")
    command = [MINIVIT, "run", "configs/quickstart.yaml", f"runs_dir={tmp_path}", "cluster.workers=1"]
    command += [f"cluster.gpus_per_worker={gpus}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
    if done.returncode == 3 and "fashion-mnist" in done.stderr:
        pytest.skip(f"needs Fashion-MNIST: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    stages = tmp_path / "quickstart" / "stages"
    evaluation = json.loads((stages / "evaluate" / "evaluation.json").read_text())
    accuracies = {name: found["accuracy"] for name, found in evaluation["models"].items()}
    assert min(accuracies.values()) > 0.6, accuracies
    for log in stages.rglob("rank-00000.log"):
        assert f"runs on {device}" in log.read_text(), log


def prepare(folder: Path, shards: Path, gpus: int) -> Path:
    """Runs only the training stage of the miniature pipeline, on one GPU; returns its folder in the run."""
    folder.mkdir()
    config = yaml.safe_load(write_config(folder, shards, STEPS, checkpoint_every=6).read_text())
    config["stages"] = {"pretrain": config["stages"]["pretrain"] | {"engine": {"deterministic": True}}}
    config["cluster"] = {"workers": 1, "gpus_per_worker": gpus}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config))
    return folder / "runs" / NAME / "stages" / "pretrain"


def wait_for(condition: Callable[[], Any], driver: psutil.Popen, folder: Path) -> Any:
    due = time.monotonic() + WAIT_S
    while not (found := condition()):
        log = (folder / "driver.log").read_text()
        assert driver.poll() is None, log
        assert time.monotonic() < due, log
        time.sleep(0.02)
    return found


def outcome(stage: Path) -> tuple[str, list[dict[str, float]]]:
    """SHA-256 of the weights, and the metrics without times and speeds."""
    rows = [{key: row[key] for key in row if not key.startswith(TIMES)} for row in read_metrics(stage)]
    return hashlib.sha256((stage / "model" / "model.safetensors").read_bytes()).hexdigest(), rows


def test_a_killed_rank_resumes_to_the_same_bits(tmp_path: Path, device: torch.device) -> None:
    gpus = int(device.type == "cuda")
    write_shards(tmp_path / "shards")
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    expected = prepare(calm, tmp_path / "shards", gpus)
    driver = start_driver(calm)
    assert driver.wait(WAIT_S) == 0, (calm / "driver.log").read_text()
    stage = prepare(disturbed, tmp_path / "shards", gpus)
    driver = start_driver(disturbed)
    wait_for(lambda: any(row["step"] >= KILLED_FROM for row in read_metrics(stage)), driver, disturbed)
    [rank] = wait_for(lambda: processes_named(driver, RANK), driver, disturbed)
    with contextlib.suppress(psutil.Error):
        rank.kill()
    assert driver.wait(WAIT_S) == 0, (disturbed / "driver.log").read_text()
    events = [json.loads(line)["event"] for line in (stage / "events.jsonl").read_text().splitlines()]
    assert events == ["restart", "resume"]
    assert outcome(stage) == outcome(expected)
