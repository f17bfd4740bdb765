"""`kill -9` of the driver and of a rank in mid-training, and another number of workers: the run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STEPS, CHECKPOINT_EVERY, KILLED_FROM = 48, 6, 20
TIMEOUT_S = 280


@pytest.fixture(scope="module")
def stages(kit: Any) -> dict[str, Any]:
    """One stage, long enough to be killed between its checkpoints."""
    stage = kit.pretrain(duration=f"{STEPS} steps", log_every=1, eval={"every": "24 steps"})
    stage["checkpoint"] = {"every": f"{CHECKPOINT_EVERY} steps"}
    return {"pretrain": stage}


@pytest.fixture(scope="module")
def undisturbed(joined: Any, kit: Any, shards: Path, stages: dict[str, Any]) -> str:
    """SHA-256 of the weights of a run that nothing disturbed."""
    done = joined.minivit("run", joined.write(kit.config(shards, "undisturbed", stages)), timeout_s=TIMEOUT_S)
    assert done.code == 0, done.stderr
    return weights(joined, "undisturbed")


def weights(joined: Any, run: str) -> str:
    return hashlib.sha256((joined.stage(run, "pretrain") / "model" / "model.safetensors").read_bytes()).hexdigest()


def start_and_reach(joined: Any, kit: Any, path: str, run: str, step: int) -> subprocess.Popen[str]:
    """Start a run and return once the ledger holds that step."""
    process = joined.start("run", path)
    kit.wait_until(lambda: any(row["step"] >= step for row in joined.rows(run, "pretrain")), process, TIMEOUT_S)
    return process


def assert_rows_are_whole(joined: Any, run: str) -> None:
    """Each step once, on disk and in MLflow."""
    expected = list(range(1, STEPS + 1))
    rows = joined.rows(run, "pretrain")
    assert [row["step"] for row in rows if "train/loss" in row] == expected
    assert [row["step"] for row in rows if "val/loss" in row] == [24, 48]
    client = joined.client()
    history = client.get_metric_history(joined.status(run, "pretrain")["mlflow_run_id"], "train/loss")
    assert sorted(metric.step for metric in history) == expected


def resumed_at(stderr: str) -> int:
    """The step that the run says it goes on from."""
    [line] = [line for line in stderr.splitlines() if line.startswith("pretrain: resumes at step ")]
    assert "kept: weights, optimiser, average, position in the data" in line
    return int(line.split("resumes at step ")[1].split()[0])


def test_killed_driver(joined: Any, kit: Any, shards: Path, stages: dict[str, Any], undisturbed: str) -> None:
    path = joined.write(kit.config(shards, "driver", stages), "driver.yaml")
    process = start_and_reach(joined, kit, path, "driver", KILLED_FROM)
    process.kill()
    process.communicate()
    before = joined.status("driver", "pretrain")
    record = json.loads((joined.folder / "runs/driver/run.json").read_text())
    assert before["state"] == "running"  # nobody was left to say otherwise
    done = joined.minivit("run", path, timeout_s=TIMEOUT_S)
    assert done.code == 0, done.stderr
    step = resumed_at(done.stderr)
    assert step >= KILLED_FROM // CHECKPOINT_EVERY * CHECKPOINT_EVERY - CHECKPOINT_EVERY
    assert step % CHECKPOINT_EVERY == 0
    after = joined.status("driver", "pretrain")
    assert (after["state"], after["attempts"]) == ("finished", 2)
    assert after["mlflow_run_id"] == before["mlflow_run_id"]
    assert json.loads((joined.folder / "runs/driver/run.json").read_text())["mlflow_run_id"] == record["mlflow_run_id"]
    assert_rows_are_whole(joined, "driver")
    assert weights(joined, "driver") == undisturbed


def rank_processes(folder: Path) -> list[psutil.Process]:
    """The processes that write a rank's log below a stage's folder."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        try:
            if any(Path(file.path).is_relative_to(folder / "logs") for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_killed_rank(joined: Any, kit: Any, shards: Path, stages: dict[str, Any], undisturbed: str) -> None:
    path = joined.write(kit.config(shards, "rank", stages), "rank.yaml")
    process = joined.start("run", path)
    folder = joined.stage("rank", "pretrain")
    ranks = kit.wait_until(lambda: len(found := rank_processes(folder)) == 2 and found, process, TIMEOUT_S)
    kit.wait_until(
        lambda: any(row["step"] >= KILLED_FROM for row in joined.rows("rank", "pretrain")), process, TIMEOUT_S
    )
    os.kill(ranks[1].pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, stderr
    assert "workers were lost" in stderr
    assert "restart 1 of at most 3" in stderr
    assert resumed_at(stderr) >= CHECKPOINT_EVERY
    assert joined.status("rank", "pretrain")["attempts"] == 1
    events = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events == ["restart", "resume"]
    assert_rows_are_whole(joined, "rank")
    assert weights(joined, "rank") == undisturbed


def test_another_number_of_workers(joined: Any, kit: Any, shards: Path, stages: dict[str, Any]) -> None:
    path = joined.write(kit.config(shards, "fewer", stages), "fewer.yaml")
    process = start_and_reach(joined, kit, path, "fewer", KILLED_FROM)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "error: fewer: stopped by SIGINT; the same command goes on"
    assert joined.status("fewer", "pretrain")["state"] == "interrupted"
    done = joined.minivit("run", path, "cluster.workers=1", timeout_s=TIMEOUT_S)
    assert done.code == 0, done.stderr
    assert "re-split: 2 workers with ZeRO-2 to 1 with ZeRO-2" in done.stderr
    assert resumed_at(done.stderr) >= CHECKPOINT_EVERY
    assert_rows_are_whole(joined, "fewer")
    losses = {run: joined.status(run, "pretrain")["result"]["loss"] for run in ("fewer", "undisturbed")}
    assert losses["fewer"] == pytest.approx(losses["undisturbed"], abs=0.05)
