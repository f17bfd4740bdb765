"""Kills a task midway: resumed on the same number of ranks it must match bit for bit, on another number in losses."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.bench.synthetic import CLASSES, NAME, SIDE, pretrain, start_driver, write_pipeline, write_shards
from pipeline.bench.tasks import task_settings, write_teacher
from pipeline.checkpoints.manifest import verify_checkpoint
from pipeline.checkpoints.selection import step_folder
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage
from pipeline.errors import CheckpointError, ClusterError
from pipeline.models.bundle import Preprocess
from pipeline.models.variants import build_spec
from pipeline.stages.folder import RunFolder, StageFolder
from pipeline.train.ledger import LedgerTail, read_metrics

STAGE = "pretrain"
PATCH, BATCH_SIZE, MICRO_BATCH_SIZE = 4, 32, 8  # two micro-batches on each of two ranks, so gradients are cached
STEPS, CHECKPOINT_EVERY, KILLED_AT = 36, 6, 20  # or a few steps later
WORKERS, OTHER_WORKERS = 2, 1
TIMES = ("time", "speed/")
CLOSE = 1e-3  # relative tolerance of losses on another number of ranks, which sum in another order
PATIENCE_S, ENDING_S = 600.0, 30.0  # waits for the step at which the run is killed, and for its processes to end


def measure(task: str) -> dict[str, Any]:
    """Train the task undisturbed, and killed once and resumed, on the same number of ranks and on fewer.

    In fp32, where the number of ranks changes only the order of sums. Raises CheckpointError, with the figures, if the
    resumed run differs from the undisturbed one.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder, other = Path(scratch) / "run", Path(scratch) / "other"
        write_pipeline_of(task, Path(scratch), folder)
        undisturbed = Path(scratch) / "undisturbed"
        shutil.copytree(folder, undisturbed)
        run_to_end(undisturbed)
        killed_at = kill_in_the_middle(folder)
        shutil.copytree(folder, other)
        run_to_end(folder)
        run_to_end(other, f"cluster.workers={OTHER_WORKERS}")
        expected, same, resized = (stage_of(each) for each in (undisturbed, folder, other))
        states, differing = compare_states(expected, same)
        result: dict[str, Any] = {
            "task": task,
            "steps": STEPS,
            "killed_at": killed_at,
            "resumed_from": resumed_from(same),
            "workers": [WORKERS, OTHER_WORKERS],
            "same_metrics": rows_of(same) == rows_of(expected),
            "same_state": not differing,
            "states": states,
            "other_loss_apart": losses_apart(expected, resized),
            "seconds": time.monotonic() - began,
        }
    if differing or not result["same_metrics"] or result["other_loss_apart"] > CLOSE:
        raise CheckpointError(f"{task} did not resume exactly: {json.dumps(result)}; it differs in {differing}")
    return result


def write_pipeline_of(task: str, scratch: Path, folder: Path) -> None:
    """Write a folder with the pipeline, its shards and, for a student, its teacher."""
    write_shards(scratch / "shards", captions=True)
    spec = build_spec("nano", image_size=SIDE, patch_size=PATCH, channels=1, depth=2, num_classes=len(CLASSES))
    write_teacher(scratch / "teacher", spec, Preprocess((0.4,), (0.3,), 1, (SIDE, SIDE)), CLASSES)
    stage = pretrain(STEPS, CHECKPOINT_EVERY) | {
        "task": task_settings(task, SIDE, PATCH, scratch / "teacher"),
        "global_batch_size": BATCH_SIZE,
        "micro_batch_size": MICRO_BATCH_SIZE,
        "engine": {"precision": "fp32"},
    }
    folder.mkdir()
    write_pipeline(folder, scratch / "shards", {STAGE: stage})


def stage_of(folder: Path) -> StageFolder:
    return RunFolder(folder / "runs" / NAME).stage(STAGE)


def run_to_end(folder: Path, *overrides: str) -> None:
    if start_driver(folder, *overrides).wait():
        raise ClusterError(f"the run did not finish: {(folder / 'driver.log').read_text()[-2000:]}")


def kill_in_the_middle(folder: Path) -> int:
    """Start the run, kill its driver and all descendants, and return the step reached."""
    driver, due, reached = start_driver(folder), time.monotonic() + PATIENCE_S, 0
    tail = LedgerTail(stage_of(folder).path)
    while reached < KILLED_AT:
        if driver.poll() is not None or time.monotonic() > due:
            kill(driver)
            raise ClusterError(
                f"the run stopped before it could be killed: {(folder / 'driver.log').read_text()[-2000:]}"
            )
        time.sleep(0.002)
        reached = max([reached, *(int(row["step"]) for row in tail.new_rows())])
    kill(driver)
    return max(int(row["step"]) for row in read_metrics(stage_of(folder).path))


def kill(driver: psutil.Popen) -> None:
    with contextlib.suppress(psutil.Error):
        processes = [driver, *driver.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=ENDING_S)


def resumed_from(stage: StageFolder) -> int:
    """Step of the checkpoint from which a killed run resumed."""
    events = [json.loads(line) for line in (stage.path / "events.jsonl").read_text().splitlines()]
    return max((int(event["step"]) for event in events if event.get("event") == "resume"), default=0)


def rows_of(stage: StageFolder) -> list[dict[str, float]]:
    """All logged values except times."""
    rows = read_metrics(stage.path)
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]


def losses_apart(one: StageFolder, other: StageFolder) -> float:
    """The largest difference of a step's loss, as a share of the largest loss.

    Different samples, or a different grouping into batches, would change the loss.
    """
    first, second = (
        torch.tensor([row["train/loss"] for row in read_metrics(stage.path) if "train/loss" in row])
        for stage in (one, other)
    )
    if first.shape != second.shape:
        return float("inf")
    return float((first - second).abs().max() / first.abs().max())


def compare_states(one: StageFolder, other: StageFolder) -> tuple[list[str], list[str]]:
    """Keys of the last checkpoints' states (weights, moments, averages, teacher), and those that differ in any bit."""
    first, second = (last_state(stage) for stage in (one, other))
    keys = sorted(first.keys | second.keys)
    differing = []
    for key in keys:
        a, b = first.whole(key), second.whole(key)
        if a.keys() != b.keys() or any(not torch.equal(a[name], b[name]) for name in a):
            differing.append(key)
    return keys, differing


def last_state(stage: StageFolder) -> StateReader:
    storage, folder = LocalStorage(stage.checkpoints), step_folder(STEPS)
    return StateReader(storage, folder, verify_checkpoint(storage, folder))
