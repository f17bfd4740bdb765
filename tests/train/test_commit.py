from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.checkpoints.manifest import hash_file
from pipeline.errors import CheckpointError
from pipeline.train.commit import ATTEMPT, record_files_collective, require_current_attempt, unwritable_as_error


@pytest.mark.usefixtures("one_rank")
def test_every_file_is_recorded(tmp_path: Path) -> None:
    for name in ("b", "a", "sub/c", "manifest.json.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    records = record_files_collective(tmp_path)
    assert [(record.path, record.bytes) for record in records] == [("a", 1), ("b", 1), ("sub/c", 5)]
    assert all(record.sha256 == hash_file(tmp_path / record.path) for record in records)


def test_a_rank_of_a_former_attempt_must_not_commit(tmp_path: Path) -> None:
    job = SimpleNamespace(folder=tmp_path, attempt="first")
    (tmp_path / ATTEMPT).write_text("first")
    require_current_attempt(job)
    (tmp_path / ATTEMPT).write_text("second")
    with pytest.raises(CheckpointError, match=r"a newer attempt has taken over this stage; this one ends$"):
        require_current_attempt(job)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path, number: int) -> None:
    expected = "cannot be written .*it goes on from the last committed"
    with pytest.raises(CheckpointError, match=expected), unwritable_as_error(tmp_path / "checkpoints"):
        raise OSError(number, "refused")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ECONNRESET, "peer")])
def test_other_faults_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, unwritable_as_error(tmp_path / "checkpoints"):
        raise error
    assert caught.value is error
