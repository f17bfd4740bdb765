from __future__ import annotations

import torch

from pipeline.probe.similarity import cosine_of, ranked, row_of


def test_codes_order_as_similarities_do_and_tell_both_back() -> None:
    queries = torch.tensor([[1.0]], dtype=torch.float64)
    cosines = torch.tensor([[0.5], [-0.5], [0.0], [-0.0], [1.0], [-1.0], [0.5]], dtype=torch.float64)
    codes = ranked(queries, cosines, first=100)
    order = codes.sort(dim=1, descending=True).values
    assert row_of(order).tolist() == [[104, 100, 106, 102, 103, 101, 105]]
    assert cosine_of(codes).tolist() == [cosines[:, 0].tolist()]


def test_a_hair_of_rounding_makes_no_difference() -> None:
    queries = torch.ones(1, 1, dtype=torch.float64)
    gallery = torch.tensor([[0.0], [1e-15]], dtype=torch.float64)
    assert row_of(ranked(queries, gallery).topk(1).values).tolist() == [[0]]
