from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.arithmetic.cpu.pieces import PIECE_VALUES, cut, piece_rows


@given(st.integers(1, 100_000), st.integers(1, 10_000))
def test_pieces_are_bounded_and_nearly_equal(rows: int, width: int) -> None:
    step = piece_rows(rows, width)
    assert step == 1 or step * width <= PIECE_VALUES + width
    pieces = -(-rows // step)
    assert rows > (pieces - 1) * step  # none is empty
    assert pieces <= 2 * -(-rows * width // PIECE_VALUES)


def test_cuts_hold_every_row_once() -> None:
    assert [list(range(7))[part] for part in cut(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
