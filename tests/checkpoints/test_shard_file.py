from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.checkpoints.shard_file import DTYPES, Span, read_shard_header, write_shard
from pipeline.checkpoints.storage import LocalStorage
from pipeline.errors import CheckpointError
from pipeline.files import hash_file

LAYOUT = [[Span("a", 0, 0, 3), Span("b", 2, 3, 4)], []]


def test_any_safetensors_reader_reads_it(storage: LocalStorage) -> None:
    tensors = {f"{number}/x": torch.arange(6).to(dtype) for number, dtype in enumerate(DTYPES.values())}
    tensors["0/step"] = torch.tensor(3.5)
    tensors["1/empty"] = torch.empty(0)
    progress: list[int] = []
    record = write_shard(storage, "step/file.safetensors", LAYOUT, tensors, progress.append)
    path = storage.path / "step/file.safetensors"
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert (record.name, record.bytes, record.sha256) == ("file.safetensors", path.stat().st_size, hash_file(path))
    assert sum(progress) == record.bytes


def test_the_header_tells_layout_and_places(storage: LocalStorage) -> None:
    tensors = {"0/weights": torch.arange(7.0), "0/step": torch.tensor(2)}
    record = write_shard(storage, "f.safetensors", LAYOUT, tensors)
    header = read_shard_header(storage, "f.safetensors", record.bytes)
    assert header.layout == LAYOUT
    by_name = {entry.name: entry for entry in header.entries}
    entry = by_name["0/weights"]
    data = (storage.path / "f.safetensors").read_bytes()[entry.start : entry.stop]
    assert data == struct.pack("<7f", *range(7))
    assert by_name["0/step"].shape == ()


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("any"))
    (storage.path / "f").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"/f is (not a checkpoint file|truncated)"):
        read_shard_header(storage, "f", len(data))


@pytest.mark.parametrize("cut", [1, 100, 130])
def test_a_file_that_is_cut_off_is_refused(storage: LocalStorage, cut: int) -> None:
    record = write_shard(storage, "f.safetensors", LAYOUT, {"0/weights": torch.arange(40.0)})
    path = storage.path / "f.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="truncated at"):
        read_shard_header(storage, "f.safetensors", record.bytes - cut)


def test_a_disk_that_refuses_is_reported_by_its_own_error(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="checkpoints"):
        write_shard(storage, "step/f.safetensors", LAYOUT, {"0/weights": torch.zeros(7)})
