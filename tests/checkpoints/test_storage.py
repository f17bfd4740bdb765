from __future__ import annotations

import errno
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints.manifest import NAME, read_manifest, verify_checkpoint
from pipeline.checkpoints.reshard import reshard
from pipeline.checkpoints.retention import Retention, prune
from pipeline.checkpoints.selection import newest_valid, step_folders
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage, ObjectStorage, Storage, open_storage, storage_error
from pipeline.errors import CheckpointError

Commit = Callable[..., str]
Usage = namedtuple("Usage", "free")


@pytest.fixture(params=["local", "memory", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The same storage on a disk, in memory, and on a real S3 server."""
    if request.param == "local":
        return open_storage(tmp_path / "checkpoints")
    if request.param == "memory":
        return open_storage(f"memory://{tmp_path.name}/checkpoints")
    (request.getfixturevalue("s3") / tmp_path.name).mkdir()
    return open_storage(f"s3://{tmp_path.name}/checkpoints")


def test_a_checkpoint_is_the_same_anywhere(anywhere: Storage, committed: Commit) -> None:
    assert step_folders(anywhere) == []
    for step in (1, 2, 3):
        committed(anywhere, step)
    assert newest_valid(anywhere, "d").folder == "step-00000003"
    prune(anywhere, Retention(2), read_manifest(anywhere, "step-00000003"))
    assert step_folders(anywhere) == ["step-00000002", "step-00000003"]
    reader = StateReader(anywhere, "step-00000003", verify_checkpoint(anywhere, "step-00000003"))
    assert torch.equal(reader.whole("weights")["bias"], torch.arange(12.0, 16.0) + 300)
    moments = reader.whole("exp_avg")["weight"]
    reshard(anywhere, "step-00000003", 3)
    again = StateReader(anywhere, "step-00000003", verify_checkpoint(anywhere, "step-00000003"))
    assert torch.equal(again.whole("exp_avg")["weight"], moments)
    anywhere.remove(f"step-00000003/{NAME}")
    anywhere.remove(f"step-00000003/{NAME}")  # gone is gone
    selection = newest_valid(anywhere, "d")
    assert selection.folder == "step-00000002"
    assert len(selection.passed_over) == 1


def test_what_is_not_there_is_reported_by_the_same_errors(anywhere: Storage) -> None:
    with pytest.raises(CheckpointError, match="was never committed"):
        read_manifest(anywhere, "step-00000009")
    with pytest.raises(FileNotFoundError), anywhere.open("step-00000009/file"):
        pass
    assert anywhere.files("step-00000009") == {}


def test_reading_beyond_the_end_is_an_error(anywhere: Storage) -> None:
    anywhere.put("step-00000001/file", b"abcdef")
    buffer = bytearray(3)
    anywhere.read_into("step-00000001/file", 2, memoryview(buffer))
    assert bytes(buffer) == b"cde"
    with pytest.raises(EOFError, match="ends at byte 6"):
        anywhere.read_into("step-00000001/file", 4, memoryview(buffer))


def test_a_write_that_is_cut_short_leaves_no_object(s3: Path, tmp_path: Path) -> None:
    (s3 / tmp_path.name).mkdir()
    storage = open_storage(f"s3://{tmp_path.name}/checkpoints")

    def write_half() -> None:
        with storage.create("step-00000001/file") as file:
            file.write(b"x" * 1000)
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert storage.files("step-00000001") == {}


def test_urls_say_which_kind_it_is(tmp_path: Path) -> None:
    assert isinstance(open_storage(tmp_path), LocalStorage)
    assert isinstance(open_storage(f"file://{tmp_path}"), LocalStorage)
    assert isinstance(open_storage("memory://x"), ObjectStorage)


def test_a_checkpoint_that_went_away_meanwhile_is_one_sentence(storage: LocalStorage) -> None:
    with (
        pytest.raises(CheckpointError, match="no longer exists: retention has removed it"),
        storage.reading("step-00000001"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_one_sentence(storage: LocalStorage, number: int) -> None:
    error = storage_error(storage, OSError(number, "refused"))
    expected = "the disk is full" if number in (errno.ENOSPC, errno.EDQUOT) else "refused"
    assert error is not None
    assert str(error).startswith(f"{storage.root} cannot be written (")
    assert expected in str(error)
    assert str(error).endswith("it resumes from the last committed checkpoint")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ECONNRESET, "peer")])
def test_other_faults_stay_what_they_are(storage: LocalStorage, error: Exception) -> None:
    assert storage_error(storage, error) is None


def test_a_full_disk_is_seen_behind_any_error(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.checkpoints.storage.shutil.disk_usage", lambda _: Usage(100))
    assert "the disk is full" in str(storage_error(storage, RuntimeError("unexpected pos 1 vs 2")))
