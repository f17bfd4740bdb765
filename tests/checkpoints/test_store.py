from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoints.manifest import NAME
from pipeline.checkpoints.store import newest_valid, prune, step_folder, step_folders

Commit = Callable[..., Path]


def steps(root: Path) -> list[int]:
    return [int(folder.name.removeprefix("step-")) for folder in step_folders(root)]


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    selection = newest_valid(tmp_path / "none", "d")
    assert (selection.folder, selection.manifest, selection.passed_over) == (None, None, [])


def test_the_newest_is_taken(tmp_path: Path, committed: Commit) -> None:
    for step in (9, 10, 100):
        committed(tmp_path, step)
    selection = newest_valid(tmp_path, "d")
    assert selection.folder == step_folder(tmp_path, 100)
    assert selection.manifest is not None
    assert selection.manifest.step == 100
    assert selection.passed_over == []


def test_falls_back_and_says_why(tmp_path: Path, committed: Commit) -> None:
    good = committed(tmp_path, 1)
    committed(tmp_path, 2, digest="other")
    changed = committed(tmp_path, 3)
    (changed / "empty").write_bytes(b"+")
    step_folder(tmp_path, 4).mkdir()
    selection = newest_valid(tmp_path, "d")
    assert selection.folder == good
    never, unequal, other = selection.passed_over
    assert never == f"{step_folder(tmp_path, 4)} has no manifest.json: it was never committed"
    assert unequal == f"{changed / 'empty'} has 1 bytes, the manifest says 0"
    assert other == f"{step_folder(tmp_path, 2)} was written for other settings"


def test_none_is_taken_when_none_is_valid(tmp_path: Path, committed: Commit) -> None:
    for step in (1, 2):
        (committed(tmp_path, step) / "empty").unlink()
    selection = newest_valid(tmp_path, "d")
    assert selection.folder is None
    assert len(selection.passed_over) == 2


def test_other_folders_are_no_checkpoints(tmp_path: Path, committed: Commit) -> None:
    committed(tmp_path, 5)
    for name in ("step-00000006-universal", "step-7", "latest"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000008x").mkdir()
    assert steps(tmp_path) == [5]


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_last_committed_ones_are_kept(tmp_path: Path, committed: Commit, keep: int) -> None:
    for step in (1, 2, 3, 4):
        committed(tmp_path, step)
    prune(tmp_path, keep)
    assert steps(tmp_path) == [1, 2, 3, 4][-keep:]


def test_uncommitted_ones_go_only_when_a_newer_one_is_committed(tmp_path: Path, committed: Commit) -> None:
    committed(tmp_path, 2)
    for step in (1, 3):
        step_folder(tmp_path, step).mkdir()
    prune(tmp_path, 1)
    assert steps(tmp_path) == [2, 3]  # 3 may still be being written


def test_nothing_goes_while_nothing_is_committed(tmp_path: Path) -> None:
    step_folder(tmp_path, 1).mkdir()
    prune(tmp_path, 1)
    assert steps(tmp_path) == [1]


def test_converted_forms_go_with_their_checkpoint(tmp_path: Path, committed: Commit) -> None:
    for step in (1, 2):
        committed(tmp_path, step)
        (tmp_path / f"step-{step:08d}-universal" / "zero").mkdir(parents=True)
    prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000002-universal"]


def test_a_half_deleted_checkpoint_is_none(tmp_path: Path, committed: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(tmp_path, 1)
    committed(tmp_path, 2)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.checkpoints.store.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1)
    assert not (step_folder(tmp_path, 1) / NAME).exists()
