from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import ModelError
from pipeline.models import MiniViT, TokenSchema, ViTSpec, build_spec
from pipeline.models.timm_bridge import from_timm, load_timm, timm_config, to_timm

Randomise = Callable[[nn.Module], None]

# Three layers and few pixels keep the large ones quick; widths, heads, patches and tokens are timm's own.
TIMM_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny/16": ("vit_tiny_patch16_224", {}),
    "small/32": ("vit_small_patch32_224", {"img_size": 96}),
    "small/8": ("vit_small_patch8_224", {}),
    "base/16": ("vit_base_patch16_224", {}),
    "large/14": ("vit_large_patch14_224", {"img_size": 56}),
    "huge/14": ("vit_huge_patch14_224", {"img_size": 56}),
    "no class token": ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "registers, no embed class": ("vit_small_patch16_224", {"reg_tokens": 4, "no_embed_class": True}),
    "registers, covered": ("vit_small_patch16_224", {"reg_tokens": 4}),
    "layer scale": ("vit_small_patch16_224", {"init_values": 1e-2}),
    "average pool": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "qk norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "no qkv bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "grey, not square": ("vit_tiny_patch16_224", {"in_chans": 1, "img_size": (32, 64)}),
    "distilled tiny": ("deit_tiny_distilled_patch16_224", {}),
    "distilled base": ("deit_base_distilled_patch16_224", {}),
}


def build(state: dict[str, torch.Tensor], spec: ViTSpec) -> MiniViT:
    model = MiniViT.from_spec(spec, init="torch").eval()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize(("name", "options"), TIMM_MODELS.values(), ids=TIMM_MODELS.keys())
def test_both_ways_with_equal_outputs(name: str, options: dict[str, Any], randomise: Randomise) -> None:
    theirs = timm.create_model(name, **{"img_size": 64, "num_classes": 7, "depth": 3, **options}).eval()
    randomise(theirs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(0.5)
    grid, heads = theirs.patch_embed.grid_size, theirs.blocks[0].attn.num_heads
    state, spec = from_timm(theirs.state_dict(), grid=grid, num_heads=heads)
    images = torch.randn(2, spec.channels, *spec.image_size)
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 1e-2
        torch.testing.assert_close(build(state, spec)(images), expected, atol=1e-5, rtol=1e-5)
        architecture, arguments = timm_config(spec)
        back = timm.create_model(architecture, **arguments).eval()
        back.load_state_dict(to_timm(state, spec), strict=True)
        torch.testing.assert_close(back(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("variant", "name"),
    [("tiny", "vit_tiny_patch16_224"), ("base", "vit_base_patch16_224"), ("huge", "vit_huge_patch14_224")],
)
def test_standard_variants_are_timms_models_by_name(variant: str, name: str) -> None:
    spec = build_spec(variant, image_size=224, num_classes=1000)
    architecture, _ = timm_config(spec)
    assert architecture == name
    with torch.device("meta"):
        state = MiniViT.from_spec(spec, init="torch").state_dict()
        theirs = timm.create_model(name, num_classes=1000).state_dict()
    converted = to_timm(state, spec)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in theirs.items()}


@given(st.integers(1, 1000), st.integers(1, 8000))
def test_odd_mlp_ratios_survive(half_width: int, mlp_dim: int) -> None:
    """A ratio is multiplied and truncated by timm: the width must come out as it was."""
    spec = build_spec("nano", image_size=28, num_classes=2, embed_dim=2 * half_width, mlp_dim=mlp_dim)
    assert int(2 * half_width * timm_config(spec)[1]["mlp_ratio"]) == mlp_dim


def test_local_safetensors_file_loads_and_a_pickle_does_not(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=12, num_classes=3).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    state, spec = load_timm(str(tmp_path / "model.safetensors"))
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(build(state, spec)(images), theirs(images), atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match="pickles run code"):
        load_timm(str(tmp_path / "model.pth"))
    with pytest.raises(ModelError, match="cannot be read"):
        load_timm(str(tmp_path / "absent.safetensors"))


def test_headless_checkpoint_gets_an_empty_head() -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    state, spec = from_timm(theirs.state_dict())
    assert spec.num_classes == 1
    assert not state["mlp_head.1.weight"].any()


def test_positions_of_nothing_become_zeros(small_spec: Callable[..., ViTSpec], randomise: Randomise) -> None:
    model = MiniViT.from_spec(small_spec(positions="none")).eval()
    randomise(model)
    architecture, arguments = timm_config(model.spec)
    theirs = timm.create_model(architecture, **arguments).eval()
    theirs.load_state_dict(to_timm(model.state_dict(), model.spec), strict=True)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs(images), model(images), atol=1e-5, rtol=1e-5)


def test_what_timm_cannot_express_is_refused(small_spec: Callable[..., ViTSpec]) -> None:
    with pytest.raises(ModelError, match=r"model\.norm: is post; timm's ViT has pre"):
        timm_config(small_spec(norm="post"))
    with pytest.raises(ModelError, match=r"model\.eps"):
        timm_config(small_spec(eps=1e-5))
    with pytest.raises(ModelError, match="distilled"):
        timm_config(dataclasses.replace(small_spec(), tokens=TokenSchema(dist=True, registers=1)))


def test_foreign_tensors_are_refused() -> None:
    state = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).state_dict()
    with pytest.raises(ModelError, match=r"'norm_pre\.weight'"):
        from_timm({**state, "norm_pre.weight": torch.zeros(192)})
    with pytest.raises(ModelError, match="not timm's ViT"):
        from_timm({"layer1.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="no square grid"):
        from_timm({**state, "pos_embed": torch.zeros(1, 7, 192)})
