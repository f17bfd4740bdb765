"""A run's folder on disk: its lock, and the state and events of each stage."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.files import write_json
from pipeline.shards.urls import is_local, local_path

STATUS_LOCK = threading.Lock()
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"


@dataclass
class Status:
    """The content of a stage's or branch's `status.json`."""

    state: str
    type: str
    digest: str
    inputs: dict[str, Any]  # what the digest covers, to tell what has changed
    started: float = 0.0
    ended: float | None = None
    attempts: int = 0
    spans: list[list[float]] = field(default_factory=list)  # [start, end] of each attempt; a killed one has no end
    mlflow_run_id: str | None = None
    untracked: str | None = None  # why MLflow's record of a finished stage is incomplete; None if it is complete
    workers: int | None = None  # ranks that a stage on workers was last started with
    init_from: str | None = None  # id of the stage it started from, or a path
    teacher: str | None = None  # likewise for the model it learns from
    checkpoints: str | None = None  # of a training stage: a path, absolute or relative to the stage's folder, or a URL
    keep_best: str | None = None  # metric that picks the best checkpoint
    schema: dict[str, Any] | None = None  # what a training stage measures
    error: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageFolder:
    """`runs/<name>/stages/<id>`."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def status(self) -> Status | None:
        path = self.path / "status.json"
        try:
            return Status(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); remove it to run the stage again") from None

    def write_status(self, status: Status) -> None:
        with STATUS_LOCK:  # or an older copy might replace a newer one
            write_json(self.path / "status.json", asdict(status))

    def event(self, event: str, message: str, **details: Any) -> None:
        """Append to the stage's events: restarts, set-asides, failures."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": time.time(), "event": event, "message": message, **details}) + "\n")

    def set_aside(self) -> Path:
        """Move the whole stage to a folder next to it, so that it can start over without losing anything."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.superseded-{number}")).exists():
            number += 1
        self.path.rename(aside)
        return aside


def checkpointing_stages(path: Path) -> dict[Path, Status]:
    """The training stages and branches that have begun in a run's or stage's folder: folder -> status.

    `checkpoints` of each is an absolute path or a URL. Raises `CheckpointError` if there is none.
    """
    run = RunFolder(path)
    branches = [StageFolder(file.parent) for file in sorted(path.glob("*/status.json"))]
    branches = [folder for folder in branches if ".superseded-" not in folder.path.name]
    folders = [run.stage(stage_id) for stage_id in run.stage_ids()] or [StageFolder(path), *branches]
    found = {}
    for folder in folders:
        status = folder.status()
        if status and status.checkpoints:
            place = status.checkpoints
            place = str(folder.path.absolute() / local_path(place)) if is_local(place) else place
            found[folder.path] = replace(status, checkpoints=place)
    if not found:
        raise CheckpointError(f"{path} has no training stage that has started; give a run's folder or a stage's")
    return found


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>`."""

    path: Path

    @property
    def config(self) -> Path:
        """The config that it was last run with, with all settings."""
        return self.path / "pipeline.yaml"

    def stage(self, stage_id: str) -> StageFolder:
        return StageFolder(self.path / "stages" / stage_id)

    def stage_ids(self) -> list[str]:
        """Ids of all stages and branches that have ever begun."""
        root = self.path / "stages"
        found = sorted(root.rglob("status.json")) if root.is_dir() else []
        ids = [str(path.parent.relative_to(root)) for path in found]
        return [stage_id for stage_id in ids if ".superseded-" not in stage_id]

    def record(self) -> dict[str, Any]:
        """The content of `run.json`; empty before the first run. Raises `CheckpointError` if it cannot be read."""
        path = self.path / "run.json"
        try:
            return dict(json.loads(path.read_text()).items())
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); remove it, and the run resumes as a new MLflow run"
            ) from None

    def write_record(self, record: dict[str, Any]) -> None:
        write_json(self.path / "run.json", record)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process; the lock ends with the process, however that exits."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise CheckpointError(
                    f"{self.path} is in use by process {file.read().strip() or 'unknown'}; "
                    "wait for it, or give this run another name with name=..."
                ) from None
            except OSError as error:
                raise CheckpointError(
                    f"{self.path} cannot be locked ({error.strerror}); mount its file system with file locks (Lustre: "
                    "option flock, NFS: version 4), or set runs_dir to a folder on one that has them"
                ) from None
            file.truncate(0)
            file.write(this_process())
            file.flush()
            yield


def this_process() -> str:
    """Where to find this process, from any node."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{os.getpid()} on {socket.gethostname()}" + (f", SLURM job {job}" if job else "")
