from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.models.layers import ACTIVATIONS, ActivatedLinear, LayerScale, Linear


@pytest.mark.parametrize("layer", [Linear(8, 8), ActivatedLinear(8, 8, "gelu", 0.0), LayerScale(8, 0.5)], ids=str)
def test_outputs_have_the_dtype_of_the_weights(layer: torch.nn.Module) -> None:
    x = torch.randn(2, 3, 8).bfloat16()
    expected = layer.float()(x.float())
    y = layer.bfloat16()(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("recomputed", [False, True])
def test_activation_comes_before_the_product(activation: str, recomputed: bool) -> None:
    layer = ActivatedLinear(8, 4, activation, 0.0)
    layer.recomputed = recomputed
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), F.linear(ACTIVATIONS[activation](x), layer.weight, layer.bias))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_dropout_is_between_activation_and_product(activation: str) -> None:
    layer = ActivatedLinear(8, 4, activation, 1.0 - 1e-9)
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x, torch.arange(3)), layer.bias.expand(3, 4))
    torch.testing.assert_close(layer(x), F.linear(ACTIVATIONS[activation](x), layer.weight, layer.bias))
