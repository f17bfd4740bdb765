from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

import pytest
import torch

from pipeline.checkpoints.manifest import verify_checkpoint
from pipeline.checkpoints.reshard import reshard
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage
from pipeline.errors import CheckpointError

Commit = Callable[..., str]
Usage = namedtuple("Usage", "free")


@pytest.mark.parametrize("files", [1, 2, 3, 40])
def test_the_state_is_the_same_in_any_number_of_files(storage: LocalStorage, committed: Commit, files: int) -> None:
    folder = committed(storage, 2, metrics={"val/loss": 1.0})
    before = StateReader(storage, folder, verify_checkpoint(storage, folder))
    states, scalars = {key: before.whole(key) for key in before.keys}, before.scalars
    renewed = reshard(storage, folder, files)
    assert len(renewed.files) == files == len(storage.files(folder)) - 1
    manifest = verify_checkpoint(storage, folder)
    assert (manifest.step, manifest.metrics, manifest.world_size) == (2, {"val/loss": 1.0}, files)
    after = StateReader(storage, folder, manifest)
    assert after.scalars == scalars
    for key, state in states.items():
        found = after.whole(key)
        assert found.keys() == state.keys()
        assert all(
            torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items()
        )


def test_a_damaged_one_is_left_as_it_is(storage: LocalStorage, committed: Commit) -> None:
    path = storage.path / committed(storage, 2) / "rank-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match="SHA-256"):
        reshard(storage, "step-00000002", 1)
    assert len(storage.files("step-00000002")) == 3


def test_room_is_looked_for_first(storage: LocalStorage, committed: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = committed(storage, 2)
    before = storage.files(folder)
    monkeypatch.setattr("pipeline.checkpoints.storage.shutil.disk_usage", lambda _: Usage(100))
    with pytest.raises(CheckpointError, match=r"cannot be written \(the disk is full\); make room"):
        reshard(storage, folder, 1)
    assert storage.files(folder) == before
