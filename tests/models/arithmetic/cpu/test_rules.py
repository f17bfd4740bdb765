from __future__ import annotations

import pytest
import torch

from pipeline.models.arithmetic.cpu import rules
from pipeline.models.arithmetic.cpu.rules import attends_by_products, computes_in_fp32, in_pieces


@pytest.mark.parametrize("arithmetic", ["none", "vector", "matrix"])
def test_half_precision_is_computed_in_fp32_where_it_would_be_emulated(
    monkeypatch: pytest.MonkeyPatch, arithmetic: str
) -> None:
    monkeypatch.setattr(rules, "ARITHMETIC", {torch.bfloat16: arithmetic, torch.float16: arithmetic})
    assert computes_in_fp32(torch.zeros(1, dtype=torch.bfloat16)) == (arithmetic == "none")
    assert computes_in_fp32(torch.zeros(1, dtype=torch.float16)) == (arithmetic == "none")
    assert not computes_in_fp32(torch.zeros(1))
    assert not computes_in_fp32(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("tiles", "vectors", "expected"), [(True, True, "matrix"), (False, True, "vector"), (False, False, "none")]
)
def test_arithmetic_is_the_best_there_is(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, vectors: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    assert rules.cpu_arithmetic(torch.bfloat16) == expected


@pytest.mark.parametrize("arithmetic", ["vector", "matrix"])
def test_attention_is_products_where_bf16_has_arithmetic(monkeypatch: pytest.MonkeyPatch, arithmetic: str) -> None:
    monkeypatch.setattr(rules, "ARITHMETIC", {torch.bfloat16: arithmetic})
    q = torch.zeros(2, 3, 5, 8, dtype=torch.bfloat16)
    assert attends_by_products(q, q)
    assert not attends_by_products(q.float(), q.float())
    with torch.autocast("cpu"):
        assert not attends_by_products(q, q)


def test_matrix_units_attend_to_long_sequences_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = (torch.zeros(1, 1, tokens, 8, dtype=torch.bfloat16) for tokens in (1, 1025))
    monkeypatch.setattr(rules, "ARITHMETIC", {torch.bfloat16: "matrix"})
    assert attends_by_products(k, q)
    assert not attends_by_products(q, k)
    monkeypatch.setattr(rules, "ARITHMETIC", {torch.bfloat16: "vector"})
    assert attends_by_products(q, k)


def test_autocast_is_not_computed_in_pieces() -> None:
    assert in_pieces()
    with torch.autocast("cpu"):
        assert not in_pieces()
