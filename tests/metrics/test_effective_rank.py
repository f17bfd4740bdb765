from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pipeline.metrics.effective_rank import SPECTRUM, Spectrum, effective_rank, singular_values


def moments(embeddings: Tensor) -> Tensor:
    return embeddings.T @ embeddings


@pytest.mark.parametrize("used", [1, 3, 8])
def test_counts_directions_that_are_used_alike(used: int) -> None:
    embeddings = torch.eye(8)[:used].repeat(5, 1)
    assert float(effective_rank(moments(embeddings))) == pytest.approx(used, rel=1e-5)


def test_a_constant_has_rank_1_and_nothing_rank_0() -> None:
    assert float(effective_rank(moments(torch.full((10, 6), 0.3)))) == pytest.approx(1, abs=1e-3)
    assert float(effective_rank(torch.zeros(6, 6))) == 0


def test_is_the_exponential_of_the_entropy_of_the_singular_values() -> None:
    embeddings = torch.randn(40, 7, dtype=torch.float64)
    values = torch.linalg.svdvals(embeddings)
    torch.testing.assert_close(singular_values(moments(embeddings)), values)
    entropy = torch.distributions.Categorical(values / values.sum()).entropy()
    torch.testing.assert_close(effective_rank(moments(embeddings)), entropy.exp())


def test_collects_over_batches_and_ranks(tmp_path: Path) -> None:
    embeddings, weights = torch.randn(12, 5), torch.ones(12).index_fill(0, torch.tensor([3]), 0.0)
    parts = []
    for rows in (slice(0, 7), slice(7, 12)):
        spectrum = Spectrum(5)
        spectrum.add(embeddings[rows], SimpleNamespace(weights=weights[rows]))
        parts.append(spectrum)
    parts[0].merge(parts[1].state())
    expected = effective_rank(moments(embeddings[weights > 0].double()))
    assert parts[0].measures() == {"effective_rank": pytest.approx(float(expected), rel=1e-6)}
    parts[0].write(tmp_path, "m", [])
    rows = list(csv.DictReader((tmp_path / SPECTRUM).open()))
    assert [row["direction"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-3)
