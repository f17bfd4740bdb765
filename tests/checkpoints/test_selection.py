from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from pipeline.checkpoints.manifest import FORMAT, NAME, NewerFormat
from pipeline.checkpoints.selection import newest_valid, step_folder, step_folders
from pipeline.checkpoints.storage import LocalStorage

Commit = Callable[..., str]


def test_no_folder_means_no_checkpoint(storage: LocalStorage) -> None:
    selection = newest_valid(storage, "d")
    assert (selection.folder, selection.manifest, selection.passed_over) == (None, None, [])


def test_the_newest_is_the_one_of_the_highest_step_whatever_the_clock_says(
    storage: LocalStorage, committed: Commit
) -> None:
    for hours, step in enumerate((10, 9, 100_000_000)):
        folder = committed(storage, step)
        for path in (storage.path / folder).iterdir():
            os.utime(path, (1e9 - 3600 * hours,) * 2)  # a clock that jumped back while the run went on
    assert step_folders(storage) == ["step-00000009", "step-00000010", "step-100000000"]
    selection = newest_valid(storage, "d")
    assert selection.folder == step_folder(100_000_000)
    assert selection.manifest is not None
    assert selection.manifest.step == 100_000_000
    assert selection.passed_over == []


def test_falls_back_and_says_why(storage: LocalStorage, committed: Commit) -> None:
    good = committed(storage, 1)
    committed(storage, 2, digest="other")
    changed = storage.path / committed(storage, 3) / "rank-0.safetensors"
    changed.write_bytes(changed.read_bytes() + b"+")
    (storage.path / step_folder(4)).mkdir()
    selection = newest_valid(storage, "d")
    assert selection.folder == good
    never, unequal, other = selection.passed_over
    assert never == f"{storage.path / step_folder(4)} has no manifest.json: it was never committed"
    assert unequal.startswith(f"{changed} has ")
    assert other == f"{storage.path / step_folder(2)} was written for other settings"


def test_none_is_taken_when_none_is_valid(storage: LocalStorage, committed: Commit) -> None:
    for step in (1, 2):
        (storage.path / committed(storage, step) / "rank-0.safetensors").unlink()
    selection = newest_valid(storage, "d")
    assert selection.folder is None
    assert len(selection.passed_over) == 2


def test_other_folders_are_no_checkpoints(storage: LocalStorage, committed: Commit) -> None:
    committed(storage, 5)
    for name in ("step-00000006-old", "step-7", "latest", "step-00000008x"):
        (storage.path / name).mkdir()
    assert step_folders(storage) == [step_folder(5)]


def test_a_checkpoint_of_a_later_version_is_never_passed_over(storage: LocalStorage, committed: Commit) -> None:
    committed(storage, 1)
    manifest = storage.path / committed(storage, 2) / NAME
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(NewerFormat, match="resume with the later version that wrote it, or move"):
        newest_valid(storage, "d")
