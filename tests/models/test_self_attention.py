from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.models import ModelSpec
from pipeline.models.self_attention import SelfAttention

Make = Callable[..., ModelSpec]
Randomise = Callable[[nn.Module], None]


@pytest.mark.parametrize("num_queries", [None, 1, 3])
def test_attention_equals_stock(num_queries: int | None, small_spec: Make, randomise: Randomise) -> None:
    ours = SelfAttention(small_spec(num_heads=4).backbone)
    stock = nn.MultiheadAttention(32, 4, batch_first=True)
    randomise(stock)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 7, 32)
    expected, _ = stock(x[:, :num_queries], x, x)
    torch.testing.assert_close(ours(x, num_queries), expected, atol=1e-5, rtol=1e-5)


def test_attention_weights_sum_to_one(small_spec: Make, randomise: Randomise) -> None:
    ours = SelfAttention(small_spec(num_heads=4, qk_norm=True).backbone)
    randomise(ours)
    weights = ours.weights(torch.randn(2, 7, 32))
    assert weights.shape == (2, 4, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
