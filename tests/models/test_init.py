from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch

from pipeline.errors import ModelError
from pipeline.models import MiniViT, ModelSpec, build_spec
from pipeline.models.timm_bridge import to_timm

Make = Callable[..., ModelSpec]


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
    assert mae.std().item() == pytest.approx((2 / (32 + spec.backbone.mlp_dim)) ** 0.5, rel=0.1)
    assert timm.std().item() == pytest.approx(0.02, rel=0.1)


def test_timms_is_timms() -> None:
    """Every tensor has the same spread as timm's, including the projection with Conv2d's own initialisation."""
    spec = build_spec("tiny", image_size=224, num_classes=100, depth=1, registers=4)
    ours = to_timm(MiniViT.from_spec(spec, init="timm").state_dict(), spec)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=100, depth=1, reg_tokens=4).state_dict()
    for name, tensor in theirs.items():
        if name != "patch_embed.proj.bias":  # ours is zero, as the other biases
            assert ours[name].std().item() == pytest.approx(tensor.std().item(), rel=0.25), name


def test_unknown_initialiser_lists_the_known(small_spec: Make) -> None:
    with pytest.raises(ModelError, match="torch, mae, timm"):
        MiniViT.from_spec(small_spec(), init="magic")
