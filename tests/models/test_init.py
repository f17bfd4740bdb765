from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import MiniViT, ViTSpec

Make = Callable[..., ViTSpec]


def test_prenorm_layers_start_different(small_spec: Make) -> None:
    layers = MiniViT.from_spec(small_spec()).transformer.layers
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"):
        assert not torch.equal(layers[0].get_parameter(name), layers[1].get_parameter(name))


@pytest.mark.parametrize("init", ["mae", "timm"])
def test_biases_zero_and_heads_small(small_spec: Make, init: str) -> None:
    model = MiniViT.from_spec(small_spec(registers=2, layer_scale=0.3, image_size=32), init=init)
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    assert model.pos_embed is not None
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.15)
    assert model.mlp_head[1].weight.std().item() == pytest.approx(0.02, rel=0.25)
    assert (model.transformer.layers[1].ls1.gamma == 0.3).all()


def test_mae_scales_with_width_and_timm_does_not(small_spec: Make) -> None:
    spec = small_spec()
    mae, timm = (MiniViT.from_spec(spec, init=init).transformer.layers[0].linear1.weight for init in ("mae", "timm"))
    assert mae.std().item() == pytest.approx((2 / (32 + spec.mlp_dim)) ** 0.5, rel=0.1)
    assert timm.std().item() == pytest.approx(0.02, rel=0.1)


def test_unknown_initialiser_lists_the_known(small_spec: Make) -> None:
    with pytest.raises(ModelError, match="torch, mae, timm"):
        MiniViT.from_spec(small_spec(), init="magic")
