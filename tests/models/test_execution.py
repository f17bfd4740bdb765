from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models import execution
from pipeline.models.execution import (
    PIECE_VALUES,
    attends_by_products,
    computes_in_fp32,
    in_pieces,
    piece_rows,
    scratch,
)


@pytest.mark.parametrize("arithmetic", ["none", "vector", "matrix"])
def test_half_precision_is_computed_in_fp32_where_it_would_be_emulated(
    monkeypatch: pytest.MonkeyPatch, arithmetic: str
) -> None:
    monkeypatch.setattr(execution, "ARITHMETIC", {torch.bfloat16: arithmetic, torch.float16: arithmetic})
    assert computes_in_fp32(torch.zeros(1, dtype=torch.bfloat16)) == (arithmetic == "none")
    assert computes_in_fp32(torch.zeros(1, dtype=torch.float16)) == (arithmetic == "none")
    assert not computes_in_fp32(torch.zeros(1))
    assert not computes_in_fp32(torch.zeros(1, dtype=torch.float64))
    assert not computes_in_fp32(torch.zeros(1, dtype=torch.bfloat16, device="meta"))


@pytest.mark.parametrize(
    ("tiles", "vectors", "expected"), [(True, True, "matrix"), (False, True, "vector"), (False, False, "none")]
)
def test_arithmetic_is_the_best_there_is(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, vectors: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    assert execution.cpu_arithmetic(torch.bfloat16) == expected


@pytest.mark.parametrize("arithmetic", ["vector", "matrix"])
def test_attention_is_products_where_bf16_has_arithmetic(monkeypatch: pytest.MonkeyPatch, arithmetic: str) -> None:
    monkeypatch.setattr(execution, "ARITHMETIC", {torch.bfloat16: arithmetic})
    q = torch.zeros(2, 3, 5, 8, dtype=torch.bfloat16)
    assert attends_by_products(q, q)
    assert not attends_by_products(q.float(), q.float())
    assert not attends_by_products(q.to("meta"), q.to("meta"))
    with torch.autocast("cpu"):
        assert not attends_by_products(q, q)


def test_matrix_units_attend_to_long_sequences_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = (torch.zeros(1, 1, tokens, 8, dtype=torch.bfloat16) for tokens in (1, 1025))
    monkeypatch.setattr(execution, "ARITHMETIC", {torch.bfloat16: "matrix"})
    assert attends_by_products(k, q)
    assert not attends_by_products(q, k)
    monkeypatch.setattr(execution, "ARITHMETIC", {torch.bfloat16: "vector"})
    assert attends_by_products(q, k)


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
