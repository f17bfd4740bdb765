from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models import execution
from pipeline.models.execution import PIECE_VALUES, computes_in_fp32, in_pieces, piece_rows, scratch


@pytest.mark.parametrize("units", [False, True])
def test_half_precision_is_computed_in_fp32_where_it_would_be_emulated(
    monkeypatch: pytest.MonkeyPatch, units: bool
) -> None:
    monkeypatch.setattr(execution, "MATRIX_UNITS", {torch.bfloat16: units, torch.float16: units})
    assert computes_in_fp32(torch.zeros(1, dtype=torch.bfloat16)) == (not units)
    assert computes_in_fp32(torch.zeros(1, dtype=torch.float16)) == (not units)
    assert not computes_in_fp32(torch.zeros(1))
    assert not computes_in_fp32(torch.zeros(1, dtype=torch.float64))
    assert not computes_in_fp32(torch.zeros(1, dtype=torch.bfloat16, device="meta"))


def test_pieces_are_for_cpus_and_not_for_autocast() -> None:
    assert in_pieces(torch.zeros(1))
    assert not in_pieces(torch.zeros(1, device="meta"))
    with torch.autocast("cpu"):
        assert not in_pieces(torch.zeros(1))


@given(st.integers(1, 100_000), st.integers(1, 10_000))
def test_pieces_are_bounded_and_nearly_equal(rows: int, width: int) -> None:
    step = piece_rows(rows, width)
    assert step == 1 or step * width <= PIECE_VALUES + width
    pieces = -(-rows // step)
    assert rows > (pieces - 1) * step  # none is empty
    assert pieces <= 2 * -(-rows * width // PIECE_VALUES)


def test_scratch_is_one_buffer_per_purpose_and_thread() -> None:
    first = scratch("a", (4, 5), torch.float32)
    assert scratch("a", (2, 5), torch.float32).data_ptr() == first.data_ptr()
    assert scratch("b", (4, 5), torch.float32).data_ptr() != first.data_ptr()
    assert scratch("a", (4, 5), torch.bfloat16).data_ptr() != first.data_ptr()
    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(scratch("a", (4, 5), torch.float32).data_ptr()))
    thread.start()
    thread.join()
    assert elsewhere[0] != first.data_ptr()


def test_scratch_of_a_prediction_serves_training() -> None:
    with torch.inference_mode():
        scratch("inference first", (8,), torch.float32).fill_(1.0)
    buffer = scratch("inference first", (8,), torch.float32)
    buffer.add_(torch.ones(8, requires_grad=True).detach())
    assert buffer.tolist() == [2.0] * 8
