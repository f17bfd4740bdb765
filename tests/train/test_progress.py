from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.train.progress import NAME, ProgressFile, Reached, read_progress


def test_what_one_rank_writes_another_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("pipeline.train.progress.time.monotonic", lambda: now)
    assert read_progress(tmp_path) is None
    progress, beats = ProgressFile(tmp_path), []
    progress.begin("features", 3)
    assert read_progress(tmp_path) == Reached("features", 0, 3)
    beat = progress.beating(lambda: beats.append(1))
    beat()
    assert read_progress(tmp_path) == Reached("features", 0, 3)  # too soon
    now += 1
    beat()
    assert read_progress(tmp_path) == Reached("features", 2, 3)
    progress.begin("kNN")
    assert read_progress(tmp_path) == Reached("kNN", 0, 0)
    assert len(beats) == 2


def test_other_ranks_write_nothing() -> None:
    ProgressFile(None).begin("features", 3)


def test_a_torn_file_is_none(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('["feat')
    assert read_progress(tmp_path) is None
