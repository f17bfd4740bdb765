"""Measures how long a run stops when a rank is killed: from the kill to the first step after it."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from pipeline.bench.synthetic import NAME, RANK, processes_named, start_driver, write_config, write_shards
from pipeline.errors import ClusterError
from pipeline.stages.folder import RunFolder
from pipeline.train.ledger import read_metrics

ENDLESS, CHECKPOINT_EVERY = 1_000_000, 20
TRAINED_STEPS = 3 * CHECKPOINT_EVERY  # between two kills
PATIENCE_S = 300.0


def measure(kills: int) -> dict[str, Any]:
    """Repeatedly kill a rank of a run on this machine and time each recovery."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_shards(folder / "shards")
        write_config(folder, folder / "shards", ENDLESS, CHECKPOINT_EVERY)
        driver = start_driver(folder)
        ledger = RunFolder(folder / "runs" / NAME).stage("pretrain").path
        try:
            begun = time.time()
            first_start_s = wait_for_step(driver, ledger, begun, begun)
            seconds = []
            for number in range(kills):
                rows = read_metrics(ledger)
                wait_for_progress(driver, ledger, int(rows[-1]["step"]) + TRAINED_STEPS)
                ranks = processes_named(driver, RANK)
                killed = time.time()
                ranks[number % len(ranks)].kill()
                seconds.append(wait_for_step(driver, ledger, killed, killed + 1))
        finally:
            for process in (*driver.children(recursive=True), driver):
                process.kill()
        return {
            "kill_to_first_step_s": statistics.median(seconds),
            "each_s": [round(value, 2) for value in seconds],
            "command_to_first_step_s": first_start_s,
        }


def wait_for_step(driver: psutil.Popen, ledger: Path, begun: float, after: float) -> float:
    """Seconds from `begun` to the first step that ended after `after` (Unix times)."""
    due = time.monotonic() + PATIENCE_S
    while not (rows := [row for row in read_metrics(ledger) if row["time"] > after]):
        require_progress(driver, ledger, due)
        time.sleep(0.05)
    return rows[0]["time"] - begun


def wait_for_progress(driver: psutil.Popen, ledger: Path, step: int) -> None:
    due = time.monotonic() + PATIENCE_S
    while read_metrics(ledger)[-1]["step"] < step:
        require_progress(driver, ledger, due)
        time.sleep(0.05)


def require_progress(driver: psutil.Popen, ledger: Path, due: float) -> None:
    if driver.poll() is not None or time.monotonic() > due:
        said = (ledger.parents[3] / "driver.log").read_text()
        raise ClusterError(f"the run to disturb makes no progress: {said[-1000:]}")
