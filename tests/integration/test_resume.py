"""Kills during training, damaged checkpoints, other numbers of workers and ZeRO stages, and losses that are NaN."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STEPS, CHECKPOINT_EVERY, LOG_EVERY, KILLED_FROM = 48, 6, 4, 20
TIMEOUT_S = 280
TIMES = ("time", "speed/")  # what no two runs have alike


@pytest.fixture(scope="module")
def stages(kit: Any) -> dict[str, Any]:
    """One stage, long enough to be killed between its checkpoints, which fall between two reports."""
    stage = kit.pretrain(duration=f"{STEPS} steps", log_every=LOG_EVERY, eval={"every": "24 steps"})
    stage["checkpoint"] = {"every": f"{CHECKPOINT_EVERY} steps"}
    return {"pretrain": stage}


@pytest.fixture(scope="module")
def undisturbed(joined: Any, kit: Any, shards: Path, stages: dict[str, Any]) -> tuple[str, list[dict[str, float]]]:
    """SHA-256 of the weights, and the metrics, of an undisturbed run."""
    done = joined.minivit("run", joined.write(kit.config(shards, "undisturbed", stages)), timeout_s=TIMEOUT_S)
    assert done.code == 0, done.stderr
    return weights(joined, "undisturbed"), metrics(joined, "undisturbed")


def weights(joined: Any, run: str) -> str:
    return hashlib.sha256((joined.stage(run, "pretrain") / "model" / "model.safetensors").read_bytes()).hexdigest()


def metrics(joined: Any, run: str) -> list[dict[str, float]]:
    """Every row of the ledger, without times and speeds."""
    rows = joined.rows(run, "pretrain")
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]


def start_and_reach(joined: Any, kit: Any, path: str, run: str, step: int) -> subprocess.Popen[str]:
    """Start a run and return once the ledger holds that step."""
    process = joined.start("run", path)
    kit.wait_until(lambda: any(row["step"] >= step for row in joined.rows(run, "pretrain")), process, TIMEOUT_S)
    return process


def assert_as_undisturbed(joined: Any, run: str, undisturbed: tuple[str, list[dict[str, float]]]) -> None:
    """Weights and metrics match bit for bit, and MLflow has each step once."""
    assert (weights(joined, run), metrics(joined, run)) == undisturbed
    client = joined.client()
    history = client.get_metric_history(joined.status(run, "pretrain")["mlflow_run_id"], "train/loss")
    assert sorted(metric.step for metric in history) == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))


def resumed_at(stderr: str) -> int:
    """The step from which the run says that it resumes."""
    [line] = [line for line in stderr.splitlines() if line.startswith("pretrain: resumes at step ")]
    assert "kept: weights, optimiser, average, position in the data" in line
    return int(line.split("resumes at step ")[1].split()[0])


def test_killed_driver(joined: Any, kit: Any, shards: Path, stages: dict[str, Any], undisturbed: Any) -> None:
    """If a byte of the newest checkpoint has changed, the run resumes from the previous one and repeats its steps."""
    path = joined.write(kit.config(shards, "driver", stages), "driver.yaml")
    process = start_and_reach(joined, kit, path, "driver", KILLED_FROM)
    process.kill()
    process.communicate()
    before = joined.status("driver", "pretrain")
    record = json.loads((joined.folder / "runs/driver/run.json").read_text())
    assert before["state"] == "running"  # nobody was left to say otherwise
    kit.wait_until_gone(joined.stage("driver", "pretrain"))
    newest = max((joined.stage("driver", "pretrain") / "checkpoints").glob("*/manifest.json")).parent
    victim = next(newest.glob("rank-00001*.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    done = joined.minivit("run", path, timeout_s=TIMEOUT_S)
    assert done.code == 0, done.stderr
    assert f"pretrain: skipped: {victim} does not match the SHA-256 in its manifest" in done.stderr
    assert resumed_at(done.stderr) == int(newest.name.removeprefix("step-")) - CHECKPOINT_EVERY
    after = joined.status("driver", "pretrain")
    assert (after["state"], after["attempts"]) == ("finished", 2)
    assert after["mlflow_run_id"] == before["mlflow_run_id"]
    assert json.loads((joined.folder / "runs/driver/run.json").read_text())["mlflow_run_id"] == record["mlflow_run_id"]
    assert_as_undisturbed(joined, "driver", undisturbed)


def test_killed_rank(joined: Any, kit: Any, shards: Path, stages: dict[str, Any], undisturbed: Any) -> None:
    path = joined.write(kit.config(shards, "rank", stages), "rank.yaml")
    process = joined.start("run", path)
    folder = joined.stage("rank", "pretrain")
    ranks = kit.wait_until(lambda: len(found := kit.rank_processes(folder)) == 2 and found, process, TIMEOUT_S)
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
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["restart", "resume"]
    assert events[1]["steps_lost"] >= KILLED_FROM - events[1]["step"]
    assert_as_undisturbed(joined, "rank", undisturbed)


def stop_at(joined: Any, kit: Any, path: str, run: str, step: int, *overrides: str) -> str:
    """Run until that step has been reported, then ask to stop; returns the driver's output."""
    process = joined.start("run", path, *overrides)
    kit.wait_until(lambda: any(row["step"] >= step for row in joined.rows(run, "pretrain")), process, TIMEOUT_S)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == f"error: {run}: stopped by SIGINT; run the same command to resume"
    assert joined.status(run, "pretrain")["state"] == "interrupted"
    return stderr


def test_other_workers_and_zero_stages_in_one_run(joined: Any, kit: Any, shards: Path, stages: dict[str, Any]) -> None:
    """2 -> 1 -> 3 workers and ZeRO 1 -> 3 -> 0: the same samples, and the same losses up to float order."""
    stages = copy.deepcopy(stages)
    stages["pretrain"] |= {"duration": "300 steps", "engine": {"precision": "fp32"}, "log_every": 1}
    stages["pretrain"]["task"] = {"type": "classification", "label_smoothing": 0.1}  # keeps losses far from zero
    stages["pretrain"]["checkpoint"] = {"every": "300 steps"}
    done = joined.minivit("run", joined.write(kit.config(shards, "steady", stages), "steady.yaml"), timeout_s=TIMEOUT_S)
    assert done.code == 0, done.stderr
    path = joined.write(kit.config(shards, "varied", stages), "varied.yaml")
    engines = [(2, 1), (1, 3), (3, 0)]
    said = []
    for number, (workers, zero_stage) in enumerate(engines):
        settings = (f"cluster.workers={workers}", f"stages.pretrain.engine.zero_stage={zero_stage}")
        if number < len(engines) - 1:
            said.append(stop_at(joined, kit, path, "varied", 20 + 60 * number, *settings))
        else:
            done = joined.minivit("run", path, *settings, timeout_s=TIMEOUT_S)
            assert done.code == 0, done.stderr
            said.append(done.stderr)
    for (workers, zero), (next_workers, next_zero), text in zip(engines, engines[1:], said[1:], strict=False):
        assert f"re-split: {workers} workers with ZeRO-{zero} to {next_workers} with ZeRO-{next_zero}" in text
        assert "steps are repeated" not in text
    steady, varied = metrics(joined, "steady"), metrics(joined, "varied")
    assert [(row["step"], row["samples"]) for row in varied] == [(row["step"], row["samples"]) for row in steady]
    for name in ("train/loss", "val/loss"):
        losses = [[row[name] for row in rows if name in row] for rows in (varied, steady)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the order of sums tells more with every step


def newest(folder: Path) -> Path | None:
    """The manifest of the newest checkpoint."""
    return max(folder.glob("checkpoints/*/manifest.json"), default=None)


def test_kills_in_the_first_seconds_of_an_epoch_cost_seconds(
    joined: Any, kit: Any, shards: Path, stages: dict[str, Any]
) -> None:
    """After the next commit, the driver and all ranks are killed. Then a later version resumes the run."""
    stages = copy.deepcopy(stages)
    stages["pretrain"] |= {"duration": "1M steps", "checkpoint": {"every": "1M steps", "every_minutes": 0.005}}
    path, folder = joined.write(kit.config(shards, "often", stages), "often.yaml"), joined.stage("often", "pretrain")
    for _ in range(2):
        before = newest(folder)
        process = joined.start("run", path)
        kit.wait_until(lambda before=before: newest(folder) not in (None, before), process, TIMEOUT_S)
        process.kill()
        _, stderr = process.communicate()
        kit.wait_until_gone(folder)
        if before:
            assert resumed_at(stderr) == int(before.parent.name.removeprefix("step-"))
    manifest = newest(folder)
    assert manifest is not None
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    done = joined.minivit("run", path, timeout_s=TIMEOUT_S)
    assert done.code == 5
    assert "has format 99" in done.error
    assert "resume with the later version that wrote it, or move" in done.error


def test_gradients_that_are_not_finite_stop_the_run_and_are_found_by_a_replay(
    joined: Any, kit: Any, shards: Path, stages: dict[str, Any]
) -> None:
    """A learning rate that makes the weights overflow."""
    stages = copy.deepcopy(stages)
    stages["pretrain"] |= {"duration": "400 steps", "max_skipped_steps": 3, "log_every": 1}
    stages["pretrain"]["optimizer"] = {"name": "sgd", "lr": 1e30, "clip_grad_norm": 0}
    path = joined.write(kit.config(shards, "wild", stages), "wild.yaml")
    done = joined.minivit("run", path, timeout_s=TIMEOUT_S)
    assert done.code == 8
    assert "the gradients of 4 steps in a row were not finite, and max_skipped_steps allows 3" in done.error
    [slots] = re.findall(r"train\.replay_slots=(\d+:\d+)`", done.error)
    rows = joined.rows("wild", "pretrain")
    assert [row["train/skipped_steps"] for row in rows[-3:]] == [1.0, 1.0, 1.0]
    assert all(row["train/loss"] == row["train/loss"] for row in rows)
    before = (joined.stage("wild", "pretrain") / "status.json").read_bytes()
    done = joined.minivit("run", path, f"train.replay_slots={slots}", timeout_s=TIMEOUT_S)
    assert done.code == 0, done.stderr
    assert "pretrain: the first module with a non-finite output is " in done.stderr
    found = json.loads((joined.stage("wild", "pretrain") / "replay.json").read_text())
    assert found["losses_not_finite"] == 16
    assert found["samples"][0]["key"].startswith("train-")
    assert (joined.stage("wild", "pretrain") / "status.json").read_bytes() == before
    done = joined.minivit("run", path, "train.replay_slots=3:19", timeout_s=TIMEOUT_S)
    assert done.code == 2
    assert "train.replay_slots: found '3:19', which is not a batch of 16 slots, such as 0:16" in done.error
