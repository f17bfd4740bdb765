from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.models import MiniViT, ViTSpec
from pipeline.models.encoder import Encoder, SelfAttention

Randomise = Callable[[nn.Module], None]


@pytest.mark.parametrize("num_queries", [None, 1, 3])
def test_attention_equals_stock(num_queries: int | None, randomise: Randomise) -> None:
    ours = SelfAttention(32, 4, dropout=0.0, qk_norm=False, eps=1e-6)
    stock = nn.MultiheadAttention(32, 4, batch_first=True)
    randomise(stock)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 7, 32)
    expected, _ = stock(x[:, :num_queries], x, x)
    torch.testing.assert_close(ours(x, num_queries), expected, atol=1e-5, rtol=1e-5)


def test_attention_weights_sum_to_one(randomise: Randomise) -> None:
    ours = SelfAttention(32, 4, dropout=0.0, qk_norm=True, eps=1e-6)
    randomise(ours)
    weights = ours.weights(torch.randn(2, 7, 32))
    assert weights.shape == (2, 4, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))


def test_drop_path_grows_with_depth(small_spec: Callable[..., ViTSpec]) -> None:
    encoder = Encoder(small_spec(depth=5, drop_path=0.4))
    rates = [getattr(layer.drop_path, "rate", 0.0) for layer in encoder.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_trimmed_last_layer_has_the_whole_gradient(small_spec: Callable[..., ViTSpec], randomise: Randomise) -> None:
    encoder = Encoder(small_spec())
    randomise(encoder)
    x = torch.randn(2, 9, 32)
    whole = torch.autograd.grad(encoder(x)[:, :2].square().sum(), list(encoder.parameters()))
    trimmed = torch.autograd.grad(encoder(x, 2).square().sum(), list(encoder.parameters()))
    torch.testing.assert_close(trimmed, whole, atol=1e-4, rtol=1e-4)


def test_attention_maps_explain_the_forward(small_model: Callable[..., MiniViT]) -> None:
    """The maps, applied to the values by hand, give the layer's attention output."""
    model = small_model(registers=1)
    images = torch.randn(2, 3, 16, 16)
    maps = model.attention_maps(images)
    assert maps.shape == (2, 2, 2, 18, 18)
    first = model.transformer.layers[0]
    x = first.norm1(model.embed(images))
    values = torch.nn.functional.linear(x, first.self_attn.in_proj_weight[64:], first.self_attn.in_proj_bias[64:])
    mixed = maps[:, 0] @ values.unflatten(-1, (2, 16)).transpose(1, 2)
    expected = first.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(first.self_attn(x), expected, atol=1e-5, rtol=1e-5)


def test_attention_maps_leave_the_mode_alone(small_model: Callable[..., MiniViT]) -> None:
    model = small_model(dropout=0.5).train()
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(model.attention_maps(images), model.attention_maps(images))
    assert model.training
