from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.models import MiniViT, ModelSpec
from pipeline.models.encoder import Encoder, EncoderLayer, Recompute

Randomise = Callable[[nn.Module], None]


def test_drop_path_grows_with_depth(small_spec: Callable[..., ModelSpec]) -> None:
    encoder = Encoder(small_spec(depth=5, drop_path=0.4).backbone)
    assert encoder.drop_path.rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_dropped_branches_add_nothing(small_spec: Callable[..., ModelSpec], randomise: Randomise, norm: str) -> None:
    layer = EncoderLayer(small_spec(norm=norm).backbone)
    randomise(layer)
    x = torch.randn(3, 9, 32)
    factors = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 2.0]])[..., None, None]
    y = layer(x, None, factors)
    torch.testing.assert_close(y[0], layer(x)[0], atol=1e-5, rtol=1e-5)
    alone = (lambda t: t) if norm == "pre" else (lambda t: layer.norm2(layer.norm1(t)))
    torch.testing.assert_close(y[1], alone(x[1]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(y[2], alone(x[2]), atol=1e-2)


@pytest.mark.parametrize("choice", ["selective", "full"])
@pytest.mark.parametrize("options", [{}, {"norm": "post"}, {"drop_path": 0.5, "dropout": 0.2}])
def test_recomputed_activations_change_nothing(
    small_spec: Callable[..., ModelSpec], randomise: Randomise, choice: Recompute, options: dict[str, object]
) -> None:
    encoder = Encoder(small_spec(depth=3, **options).backbone).train()
    randomise(encoder)
    x = torch.randn(2, 9, 32)

    def step() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        out = encoder(x, 1)
        return out, *torch.autograd.grad(out.square().sum(), list(encoder.parameters()))

    before = step()
    encoder.recompute_activations(choice)
    torch.testing.assert_close(step(), before, atol=1e-5, rtol=1e-5)


def test_recomputing_keeps_less(small_spec: Callable[..., ModelSpec], kept_bytes: Callable[..., int]) -> None:
    """Bytes that wait for the backward pass, besides the weights: measured, and in the order of the choices."""
    encoder = Encoder(small_spec(depth=8).backbone).train()

    def kept() -> int:
        return kept_bytes(encoder, lambda: encoder(torch.randn(4, 64, 32, requires_grad=True)))

    none = kept()
    encoder.recompute_activations("selective")
    selective = kept()
    encoder.recompute_activations("full")
    full = kept()
    assert selective < 0.7 * none
    assert full < 0.2 * none


def test_trimmed_last_layer_has_the_whole_gradient(small_spec: Callable[..., ModelSpec], randomise: Randomise) -> None:
    encoder = Encoder(small_spec().backbone)
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
