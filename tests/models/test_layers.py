from __future__ import annotations

import pytest
import torch

from pipeline.models.layers import DropPath, LayerNorm, LayerScale, Linear, compute_dtype


@pytest.mark.parametrize("layer", [Linear(8, 8), LayerNorm(8), LayerScale(8, 0.5)], ids=lambda x: type(x).__name__)
def test_bf16_weights_follow_fp32_activations(layer: torch.nn.Module) -> None:
    x = torch.randn(2, 3, 8)
    layer = layer.to(torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, layer.float()(x))


def test_full_precision_is_kept() -> None:
    assert compute_dtype(torch.zeros(1)) == torch.float32
    assert compute_dtype(torch.zeros(1, dtype=torch.float64)) == torch.float64


def test_bf16_on_this_cpu_is_native_only_with_amx() -> None:
    native = torch.cpu._is_amx_tile_supported()
    expected = torch.bfloat16 if native else torch.float32
    assert compute_dtype(torch.zeros(1, dtype=torch.bfloat16)) == expected


def test_drop_path_keeps_or_drops_whole_samples() -> None:
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = layer.train()(x)
    kept = dropped.amax(dim=(1, 2))
    assert torch.equal(dropped, kept[:, None, None].expand_as(dropped))
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(layer.eval()(x), x)
