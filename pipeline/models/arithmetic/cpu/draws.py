"""Random draws in blocks that stay in a core's cache."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.arithmetic import plain
from pipeline.models.arithmetic.cpu.rules import in_pieces
from pipeline.models.arithmetic.cpu.scratch import scratch
from pipeline.models.drop_path import GOLDEN, MULTIPLIERS, SHIFTS

PIECE_WORDS = 1 << 13  # 64-bit numbers generated at once


def draws_reach(threshold: int, keys: Tensor, count: int) -> Tensor:
    """See `arithmetic.draws_reach`."""
    if not in_pieces():
        return plain.draws_reach(threshold, keys, count)
    words = -(-count // plain.DRAWS)
    steps = torch.arange(1, words + 1) * GOLDEN
    reached = torch.empty(len(keys), words * plain.DRAWS, dtype=torch.bool)
    rows = max(PIECE_WORDS // words, 1)
    for row in range(0, len(keys), rows):
        for column in range(0, words, PIECE_WORDS):
            numbers = _numbers(keys[row : row + rows, None], steps[column : column + PIECE_WORDS])
            place = reached[row : row + rows, plain.DRAWS * column : plain.DRAWS * (column + numbers.shape[1])]
            torch.ge(numbers.view(torch.int16), threshold, out=place)
    return reached[:, :count]


def _numbers(keys: Tensor, steps: Tensor) -> Tensor:
    """`mix(keys + steps)` of keys [b, 1] and steps [w], in a scratch buffer."""
    x = torch.add(keys, steps, out=scratch("numbers", (len(keys), len(steps)), torch.int64))
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, None), strict=True):
        shifted = torch.bitwise_right_shift(x, shift, out=scratch("shifted", x.shape, torch.int64))
        x ^= shifted.bitwise_and_((1 << (64 - shift)) - 1)
        if multiplier is not None:
            x *= multiplier
    return x
