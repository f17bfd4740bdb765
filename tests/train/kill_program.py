"""Kills a saving process at every boundary of its files, one after the other: `python kill_program.py FOLDER`.

A child saves checkpoints of a state that differs from step to step, by the real `Saver` on a real disk. It is killed by
SIGKILL before, within or after its n-th access to a file, for n = 1, 2, ... until one child lives to its end. After
each kill the parent looks what a resumed run would find, and lets another child go on from there. It prints a line of
JSON for each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import pipeline.checkpoints.storage
import pipeline.files
from pipeline.checkpoints.manifest import MeterState
from pipeline.checkpoints.selection import newest_valid, step_folders
from pipeline.checkpoints.shard_file import Span
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage
from pipeline.config.training import CheckpointConfig
from pipeline.train.saver import ATTEMPT, Saver

SAVES, NUMEL = 4, 100_000
AUDITED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


class State:
    """What the saver asks of a rank's state; its values tell the step."""

    def __init__(self) -> None:
        self.engine = SimpleNamespace(device=torch.device("cpu"), zero_stage=2)
        self.shapes = {"weight": [NUMEL // 100, 100]}
        self.step = 0

    def parts(self) -> tuple[list[list[Span]], dict[str, Tensor]]:
        return [[Span("weight", 0, 0, NUMEL)]], {"0/weights": values(self.step)}


def values(step: int) -> Tensor:
    return torch.full((NUMEL,), float(step))


class Killer:
    """Counts accesses to files below a folder, and ends this process at the n-th."""

    def __init__(self, root: Path, at: int) -> None:
        self.root, self.at, self.count = str(root), at, 0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED and str(arguments[0]).startswith(self.root):
            self.tick()

    def install(self) -> None:
        sys.addaudithook(self.on_event)
        for module in (pipeline.files, pipeline.checkpoints.storage):
            module.sync = self.around(module.sync)
        create = LocalStorage.create

        @contextmanager
        def watched(storage: LocalStorage, path: str) -> Iterator[SimpleNamespace]:
            with create(storage, path) as file:
                yield SimpleNamespace(write=lambda data: self.write(file, data))

        LocalStorage.create = watched

    def around(self, function: Callable[[Path], None]) -> Callable[[Path], None]:
        def call(path: Path) -> None:
            self.tick()
            function(path)
            self.tick()

        return call

    def write(self, file: Any, data: bytes | memoryview) -> None:
        """In two halves, each of which reaches the file system."""
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self.tick()
            file.write(part)
            file.flush()
        self.tick()


def save_all(root: Path, first: int, attempt: str, report: Callable[[int], None]) -> None:
    """Commit the steps from `first` on, two of which stay."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    (root / ATTEMPT).write_text(attempt)
    stage = SimpleNamespace(checkpoint=CheckpointConfig(keep_last=2), global_batch_size=8, best_by=None)
    fixed = {"keep_steps": None, "run_ids": {}, "spec": SimpleNamespace(to_dict=dict)}
    job = SimpleNamespace(
        folder=root, checkpoints=str(root / "checkpoints"), attempt=attempt, digest="d", stage=stage, **fixed
    )
    state = State()
    saver = Saver(state, job, lambda: None)
    for step in range(first, SAVES + 1):
        state.step = step
        saver.begin_collective(step, {}, MeterState(0, 0, [[0.0]]))
        saver.finish()
        report(step)


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; its wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def resumed(root: Path) -> dict[str, Any]:
    """What a run that goes on finds."""
    storage = LocalStorage(root / "checkpoints")
    selection = newest_valid(storage, "d")
    if selection.folder is None or selection.manifest is None:
        return {"step": 0, "whole": True}
    state = StateReader(storage, selection.folder, selection.manifest).whole("weights")["weight"]
    whole = torch.equal(state.flatten(), values(selection.manifest.step))
    return {"step": selection.manifest.step, "whole": whole}


def kill_at(root: Path, boundary: int) -> dict[str, Any]:
    root.mkdir()
    reported = root / "reported"
    reported.write_text("0")

    def disturbed() -> None:
        killer = Killer(root / "checkpoints", boundary)
        killer.install()
        save_all(root, 1, "first", lambda step: reported.write_text(str(step)))

    status = in_child(disturbed)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    found = resumed(root)
    again = in_child(lambda: save_all(root, found["step"] + 1, "second", lambda step: None))
    last = resumed(root)
    storage = LocalStorage(root / "checkpoints")
    files = [len(storage.files(folder)) for folder in step_folders(storage)]
    return {
        "boundary": boundary,
        "killed": killed,
        "status": status,
        "reported": int(reported.read_text() or 0),
        "found": found,
        "again": again,
        "last": last,
        "folders": step_folders(storage),
        "files": files,
    }


def main() -> None:
    torch.set_num_threads(1)  # a fork would wait for the threads of its parent
    root = Path(sys.argv[1])
    boundary, killed = 0, True
    while killed:
        boundary += 1
        result = kill_at(root / f"{boundary:04d}", boundary)
        killed = result["killed"]
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
