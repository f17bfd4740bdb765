from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision

from pipeline.models import MiniViT, ModelSpec
from pipeline.models.recognise import recognise


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "ResNet"),
        ("swin_tiny_patch4_window7_224", "Swin"),
        ("convnext_nano", "ConvNeXt"),
        ("convnextv2_nano", "ConvNeXt"),
        ("beit_base_patch16_224", "BEiT"),
        ("beitv2_base_patch16_224", "BEiT"),
        ("eva02_tiny_patch14_224", "EVA"),
        ("mixer_s32_224", "Mixer"),
        ("efficientnet_b0", "EfficientNet"),
        ("mobilenetv3_small_100", "EfficientNet, MobileNet"),
        ("vit_tiny_patch16_224", "Vision Transformer in timm's layout"),
        ("vit_small_patch14_dinov2", "Vision Transformer in timm's layout"),
    ],
)
def test_timms_architectures(name: str, expected: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    found = recognise(state)
    assert found is not None
    assert expected in found[1]
    assert found[0] in state


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", "ResNet"),
        ("swin_t", "Swin"),
        ("convnext_tiny", "ConvNeXt"),
        ("vit_b_16", "torchvision's layout"),
        ("efficientnet_b0", "EfficientNet"),
    ],
)
def test_torchvisions_architectures(name: str, expected: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    found = recognise(state)
    assert found is not None
    assert expected in found[1]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["visual.class_embedding", "visual.transformer.resblocks.0.ln_1.weight"], "CLIP in the layout of OpenAI"),
        (["visual.layer1.0.conv1.weight", "visual.conv1.weight"], "CLIP with a ResNet"),
        (["vision_model.embeddings.class_embedding", "text_model.final_layer_norm.bias"], "CLIP in Hugging Face's"),
        (["vision_model.embeddings.position_embedding.weight"], "SigLIP"),
        (["mask_token", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma"], "DINOv2 in its own"),
        (["embeddings.mask_token", "encoder.layer.0.layer_scale1.lambda1"], "DINOv2 in Hugging Face's"),
        (["decoder_blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight", "mask_token"], "MAE's encoder"),
        (["teacher.backbone.blocks.0.attn.qkv.weight", "teacher.head.mlp.0.weight"], "under a prefix"),
        (["vit.encoder.layer.0.attention.attention.query.weight"], "a ViT in Hugging Face's"),
        (["model.layers.0.self_attn.q_proj.weight"], "a language model"),
        (["encoder.weight"], None),
    ],
)
def test_other_layouts(keys: list[str], expected: str | None) -> None:
    found = recognise(keys)
    assert (found is None) == (expected is None)
    assert found is None or expected in found[1]


def test_a_minivit_is_one(small_spec: Callable[..., ModelSpec]) -> None:
    with torch.device("meta"):
        state = MiniViT.from_spec(small_spec(mask_token=True), init="torch").state_dict()
    assert recognise({key: value for key, value in state.items() if key != "mask_token"}) == (
        "transformer.layers.0.self_attn.in_proj_bias",
        "a MiniViT",
    )
