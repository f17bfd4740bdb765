from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.batch import Batch
from pipeline.train.micro_batch import split, tensors_of, to_device


def batch(size: int) -> Batch:
    """Sample i has i mod 3 boxes, each of which says which sample it belongs to."""
    numbers = torch.arange(size)
    return Batch(
        views={"image": numbers.to(torch.uint8).view(size, 1, 1, 1).expand(size, 1, 2, 2).contiguous()},
        targets={
            "label": numbers,
            "boxes": numbers.repeat_interleave(numbers % 3)[:, None].repeat(1, 4),
            "boxes.offsets": torch.cat([torch.zeros(1, dtype=torch.int64), (numbers % 3).cumsum(0)]),
        },
        weights=torch.ones(size),
        slots=numbers + 7,
        keys=[f"s/{number}" for number in range(size)],
        step=3,
    )


def boxes_of(piece: Batch) -> list[list[int]]:
    """The samples that the boxes of each of a batch's samples name."""
    values, offsets = piece.targets["boxes"], piece.targets["boxes.offsets"]
    assert len(offsets) == len(piece.weights) + 1
    return [values[start:stop, 0].tolist() for start, stop in pairwise(offsets)]


@given(size=st.integers(1, 200), parts=st.integers(1, 20))
def test_each_sample_counts_once_in_parts_of_nearly_one_size(size: int, parts: int) -> None:
    whole = batch(size)
    pieces = list(split(whole, parts))
    assert len(pieces) == parts
    assert all(len(piece.weights) == len(piece.keys) > 0 for piece in pieces)
    counted = [piece for piece in pieces if piece.weights.any()]
    assert [key for piece in counted for key in piece.keys] == whole.keys
    assert [boxes for piece in counted for boxes in boxes_of(piece)] == boxes_of(whole)
    for name in tensors_of(whole).keys() - {"targets/boxes.offsets"}:
        assert torch.equal(torch.cat([tensors_of(piece)[name] for piece in counted]), tensors_of(whole)[name])
    sizes = [len(piece.weights) for piece in counted]
    assert max(sizes) - min(sizes) <= 1


@given(size=st.integers(0, 5), parts=st.integers(6, 12))
def test_stand_ins_weigh_nothing(size: int, parts: int) -> None:
    pieces = list(split(batch(size), parts))
    assert len(pieces) == parts
    assert sum(float(piece.weights.sum()) for piece in pieces) == size
    stand_ins = [piece for piece in pieces if not piece.weights.any()]
    assert all(len(piece.weights) == len(piece.keys) == len(boxes_of(piece)) == 1 for piece in stand_ins)
    assert all(piece.views["image"].eq(0).all() for piece in stand_ins)


def test_every_tensor_but_offsets_travels() -> None:
    whole = batch(3)
    tensors = {id(tensor) for tensor in tensors_of(whole).values()}
    held = [*whole.views.values(), *whole.targets.values()]
    assert tensors == {id(value) for value in [*held, *vars(whole).values()] if isinstance(value, torch.Tensor)}
    moved = tensors_of(to_device(whole, torch.device("meta")))
    on_host = {name for name, tensor in moved.items() if tensor.device.type == "cpu"}
    assert on_host == {"targets/boxes.offsets"}
