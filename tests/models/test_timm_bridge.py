from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import ModelError
from pipeline.models import MiniViT, ModelSpec, build_spec
from pipeline.models.spec import Windows
from pipeline.models.timm_bridge import from_timm, timm_config, to_timm

Randomise = Callable[[nn.Module], None]

# Three layers and few pixels keep the large ones quick; widths, heads, patches and tokens are timm's own.
SIZES = ("tiny", "small", "base", "large", "huge")
NAMES = {f"{size}/{patch}": f"vit_{size}_patch{patch}_224" for size in SIZES for patch in (32, 16, 14, 8)}
TIMM_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    # Where timm has no model of that patch it is asked for as an argument of its neighbour.
    **{
        key: (name, {}) if timm.is_model(name) else (f"vit_{key.split('/')[0]}_patch{usual}_224", {"patch_size": patch})
        for key, name in NAMES.items()
        for patch, usual in [(int(key.split("/")[1]), 14 if key.startswith("huge") else 16)]
    },
    "no class token": ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "no class token, large": ("vit_large_patch14_224", {"class_token": False, "global_pool": "avg"}),
    "registers, no embed class": ("vit_small_patch16_224", {"reg_tokens": 4, "no_embed_class": True}),
    "registers, covered": ("vit_small_patch16_224", {"reg_tokens": 4}),
    "registers, no class token": (
        "vit_base_patch16_224",
        {"class_token": False, "reg_tokens": 4, "global_pool": "avg", "no_embed_class": True},
    ),
    "registers, layer scale, huge": ("vit_huge_patch14_224", {"reg_tokens": 4, "init_values": 1e-2}),
    "layer scale": ("vit_small_patch16_224", {"init_values": 1e-2}),
    "average pool": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "qk norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "no qkv bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "grey, not square": ("vit_tiny_patch16_224", {"in_chans": 1, "img_size": (32, 64)}),
    "DINOv2": ("vit_small_patch14_dinov2", {}),
    "DINOv2 with registers": ("vit_base_patch14_reg4_dinov2", {}),
    "DeiT": ("deit_small_patch16_224", {}),
    "DeiT III": ("deit3_small_patch16_224", {}),
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "CLIP, patch 32, QuickGELU": ("vit_base_patch32_clip_quickgelu_224", {}),
    "CLIP, large": ("vit_large_patch14_clip_224", {}),
    "distilled tiny": ("deit_tiny_distilled_patch16_224", {}),
    "distilled small": ("deit_small_distilled_patch16_224", {}),
    "distilled base": ("deit_base_distilled_patch16_224", {}),
    "distilled base at 384": ("deit_base_distilled_patch16_384", {}),
}


def build(state: dict[str, torch.Tensor], spec: ModelSpec) -> MiniViT:
    model = MiniViT.from_spec(spec, init="torch").eval()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize(("name", "options"), TIMM_MODELS.values(), ids=TIMM_MODELS.keys())
def test_both_ways_with_equal_outputs(name: str, options: dict[str, Any], randomise: Randomise) -> None:
    size = 56 if options.get("patch_size", 14 if "patch14" in name else 16) == 14 else 64
    theirs = timm.create_model(name, **{"img_size": size, "num_classes": 7, "depth": 3, **options}).eval()
    randomise(theirs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(0.5)
    grid, heads = theirs.patch_embed.grid_size, theirs.blocks[0].attn.num_heads
    activation = "quick_gelu" if "quickgelu" in name else "gelu"
    state, spec = from_timm(theirs.state_dict(), grid=grid, num_heads=heads, activation=activation)
    images = torch.randn(2, spec.backbone.channels, *spec.backbone.image_size)
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 1e-2
        torch.testing.assert_close(build(state, spec)(images), expected, atol=1e-5, rtol=1e-5)
        architecture, arguments = timm_config(spec)
        back = timm.create_model(architecture, **arguments).eval()
        back.load_state_dict(to_timm(state, spec), strict=True)
        torch.testing.assert_close(back(images), expected, atol=1e-5, rtol=1e-5)
    assert back.state_dict().keys() == theirs.state_dict().keys() | added_by_us(options)


def added_by_us(options: dict[str, Any]) -> set[str]:
    """Biases are zero if timm's model has none."""
    return {f"blocks.{layer}.attn.qkv.bias" for layer in range(3)} if options.get("qkv_bias") is False else set()


@pytest.mark.parametrize(
    ("variant", "name"),
    [(size, name) for key, name in NAMES.items() if timm.is_model(name) for size in [key.split("/")[0]]],
)
def test_standard_variants_are_timms_models_by_name(variant: str, name: str) -> None:
    patch = int(name.split("patch")[1].split("_")[0])
    spec = build_spec(variant, image_size=224, patch_size=patch, num_classes=1000)
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


def test_headless_checkpoint_gets_an_empty_head() -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
    state, spec = from_timm(theirs.state_dict())
    assert spec.num_classes == 1
    assert not state["mlp_head.1.weight"].any()


def test_positions_of_nothing_become_zeros(small_spec: Callable[..., ModelSpec], randomise: Randomise) -> None:
    model = MiniViT.from_spec(small_spec(positions="none")).eval()
    randomise(model)
    architecture, arguments = timm_config(model.spec)
    theirs = timm.create_model(architecture, **arguments).eval()
    theirs.load_state_dict(to_timm(model.state_dict(), model.spec), strict=True)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs(images), model(images), atol=1e-5, rtol=1e-5)


def test_what_timm_cannot_express_is_refused(small_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(ModelError, match=r"model\.norm: found post, but timm's ViT has pre"):
        timm_config(small_spec(norm="post"))
    with pytest.raises(ModelError, match=r"model\.eps"):
        timm_config(small_spec(eps=1e-5))
    with pytest.raises(ModelError, match="distilled"):
        timm_config(small_spec(dist_token=True, registers=1))
    with pytest.raises(ModelError, match=r"model\.windows: timm's ViT has none"):
        timm_config(small_spec(windows=Windows(2)))


def test_foreign_tensors_are_refused() -> None:
    state = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).state_dict()
    with pytest.raises(ModelError, match=r"its tensor 'attn_pool\.q\.weight' does not fit into a MiniViT"):
        from_timm({**state, "attn_pool.q.weight": torch.zeros(192)})
    with pytest.raises(ModelError, match=r"'blocks\.0\.gamma_1'.* seems to be BEiT or EVA"):
        from_timm({**state, "blocks.0.gamma_1": torch.zeros(192)})
    with pytest.raises(ModelError, match="not timm's plain ViT; it contains layer1"):
        from_timm({"layer1.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="do not form a square grid"):
        from_timm({**state, "pos_embed": torch.zeros(1, 7, 192)})


def test_feature_maps_are_timms(randomise: Randomise) -> None:
    """`forward_intermediates` at twice the size, against timm's own at that size."""
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, reg_tokens=2, num_classes=3).eval()
    randomise(theirs)
    ours = build(*from_timm(theirs.state_dict(), grid=(2, 2), num_heads=3))
    images = torch.randn(2, 3, 64, 96)
    theirs.set_input_size((64, 96))
    for norm in (False, True):
        expected = theirs.forward_intermediates(images, indices=[1, 3], norm=norm, intermediates_only=True)
        torch.testing.assert_close(
            ours.forward_intermediates(images, [1, 3], norm=norm), expected, atol=1e-4, rtol=1e-4
        )
