"""Compares a run disturbed by many random kills with an undisturbed run of the same pipeline."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.bench.synthetic import NAME, RANK, RAYLET, processes_named, start_driver, write_config, write_shards
from pipeline.errors import ClusterError
from pipeline.stages.folder import FINISHED, RUNNING, RunFolder
from pipeline.train.ledger import LedgerTail, read_metrics

TRAINING_PER_KILL_S = 15.0  # seconds of steps; after a raylet is killed, they continue until this is detected
PROBE_STEPS, CHECKPOINT_EVERY = 200, 6
ENDING = {"export": "export", "evaluate": "evaluation"}  # stages and their names as phases
PHASES = ("start", "steps", "save", *ENDING.values())
LONGEST_DELAYS_S = {"start": 25.0, "steps": 4.0, "evaluation": 4.0}  # between the start of a phase and its kill
VICTIMS = ("rank", "driver", "raylet", "tree")
PATIENCE_S = 120.0  # wait for a phase; after that the kill strikes in any phase
MOST_STARTS_PER_KILL = 3
TIMES = ("time", "speed/")


@dataclass
class Chaos:
    """A folder with a pipeline in it, its driver, and the kills so far."""

    folder: Path
    random: random.Random
    kills: list[dict[str, str]] = field(default_factory=list)
    starts: int = 0
    started_at: float = 0.0  # Unix time, like the next field
    last_step_at: float = 0.0

    def __post_init__(self) -> None:
        self._tail = LedgerTail(self.run.stage("pretrain").path)

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder / "runs" / NAME)

    def start(self) -> psutil.Popen:
        self.starts, self.started_at = self.starts + 1, time.time()
        return start_driver(self.folder)

    def phases(self) -> list[str]:
        """Current phases of the run according to its folder; export and evaluation run concurrently."""
        ending = [name for stage, name in ENDING.items() if self._is_running(stage)]
        if ending:
            return ending
        folder = self.run.stage("pretrain")
        if any(not (step / "manifest.json").exists() for step in folder.checkpoints.glob("step-*")):
            return ["save"]
        if rows := self._tail.new_rows():
            self.last_step_at = rows[-1]["time"]
        return ["steps"] if self.last_step_at > time.time() - 2 else ["start"]

    def _is_running(self, stage: str) -> bool:
        folder = self.run.stage(stage)
        status = folder.status()
        if status is None or status.state != RUNNING:
            return False
        return (folder.path / "status.json").stat().st_mtime > self.started_at  # otherwise from a killed driver

    def kill_in_phase(self, driver: psutil.Popen, phase: str, victim: str) -> bool:
        """Wait for the phase, then kill; returns False if there was nothing to kill."""
        due = time.monotonic() + PATIENCE_S
        while not self._is_due(phase) and time.monotonic() < due:
            if driver.poll() is not None or self.is_finished():
                break
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, LONGEST_DELAYS_S.get(phase, 0)))
        processes = self.victims(driver, victim)
        where = self.phases()
        if not processes or driver.poll() is not None:
            return False
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.kills.append({"victim": victim, "phase": phase if phase in where else where[0]})
        return True

    def _is_due(self, phase: str) -> bool:
        """Whether to kill now: in the wanted phase, or in the next one if it is over; a start needs no wait."""
        now = self.phases()
        if phase == "export" and self._is_finished("export"):
            phase = "evaluation"
        is_over = phase not in ENDING.values() and not set(now).isdisjoint(ENDING.values())
        return phase == "start" or phase in now or is_over

    def victims(self, driver: psutil.Popen, victim: str) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            if victim == "driver":
                return [driver]
            if victim == "tree":
                return [driver, *driver.children(recursive=True)]
            found = processes_named(driver, {"raylet": RAYLET, "rank": RANK}[victim])
            return [self.random.choice(found)] if found else []
        return []

    def run_with_kills(self, kills: int) -> None:
        """Run the pipeline to its end through `kills` kills, restarting it whenever it ends."""
        phases = self.random.choices(PHASES, k=kills)
        phases.sort(key=lambda phase: max(PHASES.index(phase), PHASES.index("save")))  # in training: in the order drawn
        driver = self.start()
        while phases and not self.is_finished() and self.starts <= MOST_STARTS_PER_KILL * kills:
            if self.kill_in_phase(driver, phases[0], self.random.choice(VICTIMS)):
                phases.pop(0)
                if self.kills[-1]["victim"] != "rank":
                    driver.wait()
            if driver.poll() is not None and not self.is_finished():
                driver = self.start()
        self.run_to_end(driver)

    def run_to_end(self, driver: psutil.Popen) -> None:
        for _ in range(MOST_STARTS_PER_KILL):
            if driver.wait() == 0:
                return
            driver = self.start()
        raise ClusterError(f"the run did not finish: {(self.folder / 'driver.log').read_text()[-2000:]}")

    def is_finished(self) -> bool:
        return all(self._is_finished(stage) for stage in ENDING)

    def _is_finished(self, stage: str) -> bool:
        status = self.run.stage(stage).status()
        return status is not None and status.state == FINISHED

    def outcome(self) -> dict[str, Any]:
        """Results of the run: the hash of the exported weights, its metrics, its evaluation."""
        export = self.run.path / "stages/export/export/safetensors/model.safetensors"
        rows = read_metrics(self.run.stage("pretrain").path)
        kept = [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]
        evaluation = json.loads((self.run.path / "stages/evaluate/evaluation.json").read_text())
        return {
            "weights": hashlib.sha256(export.read_bytes()).hexdigest(),
            "rows": kept,
            "models": evaluation["models"],
        }


def miniature(folder: Path, shards: Path, steps: int, seed: int) -> Chaos:
    folder.mkdir()
    write_config(folder, shards, steps, CHECKPOINT_EVERY)
    return Chaos(folder, random.Random(seed))


def steps_per_s(folder: Path, shards: Path) -> float:
    """Speed of the undisturbed miniature, excluding its start."""
    probe = miniature(folder, shards, PROBE_STEPS, seed=0)
    probe.run_to_end(probe.start())
    ended_at = {row["step"]: row["time"] for row in read_metrics(probe.run.stage("pretrain").path)}
    return (PROBE_STEPS - PROBE_STEPS // 2) / (ended_at[PROBE_STEPS] - ended_at[PROBE_STEPS // 2])


def measure(kills: int, seed: int) -> dict[str, Any]:
    """Disturb a run and compare its results with those of an undisturbed one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, shards = Path(scratch), Path(scratch) / "shards"
        write_shards(shards)
        steps = round(kills * TRAINING_PER_KILL_S * steps_per_s(folder / "probe", shards))
        steady, chaos = (miniature(folder / name, shards, steps, seed) for name in ("undisturbed", "disturbed"))
        began = time.monotonic()
        steady.run_to_end(steady.start())
        undisturbed_s = time.monotonic() - began
        began = time.monotonic()
        chaos.run_with_kills(kills)
        disturbed_s = time.monotonic() - began
        expected, found = steady.outcome(), chaos.outcome()
        events = chaos.run.stage("pretrain").path / "events.jsonl"
        told = events.read_text().splitlines() if events.is_file() else []  # a kill before the first step logs nothing
        lost = [json.loads(line).get("steps_lost", 0) for line in told]
        return {
            "steps": steps,
            "kills": len(chaos.kills),
            "by_victim": dict(Counter(kill["victim"] for kill in chaos.kills)),
            "by_phase": dict(Counter(kill["phase"] for kill in chaos.kills)),
            "same_weights": found["weights"] == expected["weights"],
            "same_metrics": found["rows"] == expected["rows"],
            "same_evaluation": found["models"] == expected["models"],
            "steps_done_again": sum(lost),
            "starts": chaos.starts,
            "undisturbed_s": undisturbed_s,
            "disturbed_s": disturbed_s,
        }
