from __future__ import annotations

import fcntl
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoints.manifest import NAME, read_manifest
from pipeline.checkpoints.retention import Retention, best_step, prune, sweep
from pipeline.checkpoints.selection import step_folder, step_folders
from pipeline.checkpoints.storage import LocalStorage

Commit = Callable[..., str]
LOSSES = st.dictionaries(st.integers(1, 200), st.sampled_from([0.5, 1.0, 2.0]) | st.floats(0, 10), min_size=1)
ODD_LOSSES = st.dictionaries(st.integers(1, 200), st.none() | st.floats(), min_size=1)
BEST_BY = st.none() | st.just(("val/loss", "lower"))
RETENTIONS = st.builds(Retention, st.integers(1, 5), st.none() | st.integers(1, 50), BEST_BY)


def prune_at(storage: LocalStorage, step: int, retention: Retention) -> None:
    """Remove checkpoints as rank 0 does after committing that step."""
    prune(storage, retention, read_manifest(storage, step_folder(step)))


def steps(storage: LocalStorage) -> list[int]:
    return [int(folder.removeprefix("step-")) for folder in step_folders(storage)]


@given(LOSSES, RETENTIONS)
def test_what_is_kept_is_what_was_asked_for(losses: dict[int, float], retention: Retention) -> None:
    metrics = {step: {"val/loss": loss} for step, loss in losses.items()}
    kept = retention.kept(metrics)
    assert set(sorted(losses)[-retention.last :]) <= kept <= set(losses)
    if retention.best_by:
        assert min(losses.values()) in {losses[step] for step in kept}
    if retention.every_steps:
        stretches = {step // retention.every_steps for step in losses} - {0}
        assert stretches <= {step // retention.every_steps for step in kept}


@given(LOSSES, RETENTIONS)
def test_removing_at_every_commit_keeps_what_removing_once_keeps(
    losses: dict[int, float], retention: Retention
) -> None:
    """Only the best is kept: one that was the best for a while is removed and cannot become the best again."""
    present: dict[int, dict[str, float]] = {}
    for step in sorted(losses):
        present[step] = {"val/loss": losses[step]}
        kept = retention.kept(present)
        present = {step: metrics for step, metrics in present.items() if step in kept}
    assert set(present) == retention.kept({step: {"val/loss": loss} for step, loss in losses.items()})


def test_an_accuracy_is_best_when_it_is_highest_and_first() -> None:
    metrics = {1: {"val/accuracy": 0.5}, 2: {"val/accuracy": 0.9}, 3: {"val/accuracy": 0.9}, 4: {}, 5: {}}
    assert Retention(1, None, ("val/accuracy", "higher")).kept(metrics) == {2, 5}
    assert Retention(1, None, ("val/top5", "higher")).kept(metrics) == {5}


@given(ODD_LOSSES)
def test_the_best_is_the_least_finite_loss_and_the_earliest_of_equals(losses: dict[int, float | None]) -> None:
    metrics = {step: {} if loss is None else {"val/loss": loss} for step, loss in losses.items()}
    best = best_step(metrics, "val/loss", "lower")
    finite = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
    assert best == (min(finite, key=lambda step: (finite[step], step)) if finite else None)


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_last_committed_ones_are_kept(storage: LocalStorage, committed: Commit, keep: int) -> None:
    for step in (1, 2, 3, 4):
        committed(storage, step)
    prune_at(storage, 4, Retention(keep))
    assert steps(storage) == [1, 2, 3, 4][-keep:]


def test_former_results_and_steps_to_come_neither_count_nor_go(storage: LocalStorage, committed: Commit) -> None:
    """A stage that runs again with other settings in the same folder; a run that skipped its newest checkpoint."""
    for step, digest in ((1, "former"), (2, "d"), (3, "d"), (8, "d"), (9, "former")):
        committed(storage, step, digest=digest, metrics={"val/loss": -float(step)})
    prune_at(storage, 3, Retention(1, best_by=("val/loss", "lower")))
    assert steps(storage) == [1, 3, 8, 9]


def test_uncommitted_ones_go_only_when_a_newer_one_is_committed(storage: LocalStorage, committed: Commit) -> None:
    committed(storage, 2)
    for step in (1, 3):
        (storage.path / step_folder(step)).mkdir()
    prune_at(storage, 2, Retention(1))
    assert steps(storage) == [2, 3]  # 3 may still be being written


def test_one_that_is_being_read_stays_until_it_is_not(storage: LocalStorage, committed: Commit) -> None:
    for step in (1, 2):
        committed(storage, step)
    with storage.reading(step_folder(1)):
        prune_at(storage, 2, Retention(1))
        assert steps(storage) == [1, 2]
        assert read_manifest(storage, step_folder(1)).step == 1
    prune_at(storage, 2, Retention(1))
    assert steps(storage) == [2]


def test_nothing_goes_where_a_manifest_cannot_be_read(storage: LocalStorage, committed: Commit) -> None:
    for step in (1, 2, 3):
        committed(storage, step)
    (storage.path / step_folder(2) / NAME).write_text("{")
    prune_at(storage, 3, Retention(1))
    assert steps(storage) == [1, 2, 3]


def test_a_half_removed_one_is_none(storage: LocalStorage, committed: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        committed(storage, step)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.checkpoints.storage.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune_at(storage, 2, Retention(1))
    assert steps(storage) == [1, 2]
    assert not (storage.path / step_folder(1) / NAME).exists()


def test_what_other_attempts_left_is_swept(storage: LocalStorage, committed: Commit) -> None:
    folder = committed(storage, 1)
    before = storage.files(folder)
    (storage.path / folder / "rank-00000-of-00009.killed.safetensors").write_bytes(b"half")
    sweep(storage, folder, read_manifest(storage, folder))
    assert storage.files(folder) == before


def test_locks_are_those_of_the_system(storage: LocalStorage, committed: Commit) -> None:
    folder = committed(storage, 1)
    with storage.reading(folder), (storage.path / folder / NAME).open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
