from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoints.manifest import Manifest, MeterState, read_manifest
from pipeline.checkpoints.shard_file import Span, write_shard
from pipeline.checkpoints.state_reader import StateReader
from pipeline.checkpoints.storage import LocalStorage
from pipeline.errors import CheckpointError

Commit = Callable[..., str]


@pytest.fixture
def reader(storage: LocalStorage, committed: Commit) -> StateReader:
    folder = committed(storage, 1)
    return StateReader(storage, folder, read_manifest(storage, folder))


def test_states_are_put_together_from_all_files(reader: StateReader) -> None:
    weights = reader.whole("weights")
    assert {name: list(value.shape) for name, value in weights.items()} == reader.shapes
    assert torch.equal(weights["weight"].flatten(), torch.arange(12.0) + 100)
    assert torch.equal(weights["bias"], torch.arange(12.0, 16.0) + 100)
    assert torch.equal(weights["shift"], torch.arange(5))
    assert reader.whole("exp_avg").keys() == {"weight", "bias"}
    assert reader.keys == {"weights", "exp_avg"}
    assert reader.scalars == {"step": torch.tensor(7.0)}
    assert reader.bytes_by_key() == {"weights": 4 * 16 + 8 * 5, "exp_avg": 4 * 16}


def test_bytes_are_reported_as_they_are_read(storage: LocalStorage, committed: Commit) -> None:
    read: list[int] = []
    folder = committed(storage, 1)
    reader = StateReader(storage, folder, read_manifest(storage, folder), read.append)
    read.clear()
    reader.whole("weights")
    assert sum(read) == reader.bytes_by_key()["weights"]
    assert len(read) >= len(reader.shapes)


def test_the_model_is_the_average_where_there_is_one(storage: LocalStorage) -> None:
    tensors = {
        "0/weights": torch.ones(2),
        "0/ema": torch.full((2,), 3.0),
        "1/weights": torch.ones(1, dtype=torch.bfloat16),
    }
    layout = [[Span("a", 0, 0, 2)], [Span("frozen", 0, 0, 1)]]
    files = [write_shard(storage, "s/f.safetensors", layout, tensors)]
    shapes = {"a": [2], "frozen": [1]}
    manifest = Manifest(1, 1, 1, 0, "d", {}, shapes, files, {}, MeterState(0, 0, [[0.0]]))
    state = StateReader(storage, "s", manifest).model_state()
    assert state["a"].tolist() == [3.0, 3.0]
    assert state["frozen"].dtype == torch.float32


@given(st.data())
def test_any_stretch_is_read_from_any_cut(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A parameter cut into spans that are distributed over files in any order, with padding in between."""
    storage = LocalStorage(tmp_path_factory.mktemp("any"))
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    numel = prod(shape)
    value = torch.randn(numel)
    inner = data.draw(st.sets(st.integers(1, numel - 1), max_size=5)) if numel > 1 else set()
    cuts = [0, *sorted(inner), numel]
    pieces = data.draw(st.permutations(list(pairwise(cuts))))
    files = []
    for number, (start, stop) in enumerate(pieces):
        padding = torch.full((number,), float("nan"))
        tensors = {"0/weights": torch.cat([padding, value[start:stop], padding])}
        files.append(
            write_shard(storage, f"s/{number}.safetensors", [[Span("p", start, number, stop - start)]], tensors)
        )
    reader = StateReader(storage, "s", Manifest(1, 1, 1, 0, "d", {}, {"p": shape}, files, {}, MeterState(0, 0, [])))
    assert torch.equal(reader.whole("weights")["p"], value.reshape(shape))
    first = data.draw(st.integers(0, numel - 1))
    target = torch.empty(data.draw(st.integers(1, numel - first)))
    reader.read_into(target, "p", first, "weights")
    assert torch.equal(target, value[first : first + target.numel()])


def test_other_types_are_converted(reader: StateReader) -> None:
    target = torch.empty(2, dtype=torch.bfloat16)
    reader.read_into(target, "weight", 3, "weights")
    assert target.tolist() == [103.0, 104.0]


@pytest.mark.parametrize(("name", "start", "numel"), [("bias", 2, 3), ("nothing", 0, 1), ("weight", 12, 1)])
def test_a_gap_is_an_error(reader: StateReader, name: str, start: int, numel: int) -> None:
    with pytest.raises(CheckpointError, match=rf"values of weights of {name}: its files are incomplete"):
        reader.read_into(torch.empty(numel), name, start, "weights")


def test_a_file_that_is_none_of_ours_is_an_error(storage: LocalStorage, committed: Commit, tmp_path: Path) -> None:
    folder = committed(storage, 1)
    (storage.path / folder / "rank-0.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    with pytest.raises(CheckpointError, match="is not a checkpoint file"):
        StateReader(storage, folder, read_manifest(storage, folder))
