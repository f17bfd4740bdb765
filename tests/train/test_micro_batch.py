from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.batch import Batch
from pipeline.train.micro_batch import TENSORS, split, to_device


def batch(size: int) -> Batch:
    numbers = torch.arange(size)
    return Batch(
        images=numbers.to(torch.uint8).view(size, 1, 1, 1).expand(size, 1, 2, 2).contiguous(),
        labels=numbers,
        labels_mix=numbers + 100,
        mix=numbers / 1000,
        weights=torch.ones(size),
        slots=numbers + 7,
        keys=[f"s/{number}" for number in range(size)],
        step=3,
    )


@given(size=st.integers(1, 200), parts=st.integers(1, 20))
def test_each_sample_counts_once_in_parts_of_nearly_one_size(size: int, parts: int) -> None:
    whole = batch(size)
    pieces = list(split(whole, parts))
    assert len(pieces) == parts
    assert all(len(piece.labels) > 0 for piece in pieces)
    counted = [piece for piece in pieces if piece.weights.any()]
    for name in TENSORS:
        assert torch.equal(torch.cat([getattr(piece, name) for piece in counted]), getattr(whole, name))
    sizes = [len(piece.labels) for piece in counted]
    assert max(sizes) - min(sizes) <= 1


@given(size=st.integers(1, 5), parts=st.integers(6, 12))
def test_stand_ins_weigh_nothing(size: int, parts: int) -> None:
    pieces = list(split(batch(size), parts))
    assert sum(float(piece.weights.sum()) for piece in pieces) == size
    assert all(torch.equal(piece.images, batch(size).images[:1]) for piece in pieces if not piece.weights.any())


def test_every_tensor_of_a_batch_travels() -> None:
    assert set(TENSORS) == {name for name, value in vars(batch(1)).items() if isinstance(value, torch.Tensor)}
    moved = to_device(batch(3), torch.device("meta"))
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
