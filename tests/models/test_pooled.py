from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models.minivit import MiniViT
from pipeline.models.model_spec import ModelSpec
from pipeline.models.pooled import pooled
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def model_of(heads: dict[str, HeadSpec], **options: Any) -> MiniViT:
    torch.manual_seed(0)
    backbone = build_backbone("nano", image_size=8, patch_size=4, channels=1, depth=2, registers=1, **options)
    model = MiniViT.from_spec(ModelSpec(backbone, heads)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.startswith("mlp_head.0"):
            torch.nn.init.normal_(parameter)
    return model


def test_class_token_and_patches_through_the_classifier_s_norm() -> None:
    model = model_of({"mlp_head": HeadSpec("classifier", 3)})
    tokens, norm = model.forward_features(IMAGES), model.mlp_head[0]
    token, patches = norm(tokens[:, 0]), norm(tokens[:, 2:].mean(dim=1))
    torch.testing.assert_close(pooled(model, IMAGES, "cls"), token)
    torch.testing.assert_close(pooled(model, IMAGES, "patches"), patches)
    torch.testing.assert_close(pooled(model, IMAGES, "both"), torch.cat([token, patches], dim=1))
    torch.testing.assert_close(model.mlp_head[1](pooled(model, IMAGES, "cls")), model(IMAGES))


@pytest.mark.parametrize("kind", ["simmim", "linear"])
def test_the_norm_of_other_heads(kind: str) -> None:
    model = model_of({"head": HeadSpec(kind, 3 if kind == "linear" else 0)}, mask_token=kind == "simmim")
    norm = model.head.norm if kind == "simmim" else model.head.norms[-1]
    torch.testing.assert_close(pooled(model, IMAGES, "cls"), norm(model.forward_features(IMAGES)[:, 0]))


def test_without_heads_a_norm_without_weights() -> None:
    found = pooled(model_of({}), IMAGES, "patches")
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(dim=1, correction=0), torch.ones(2), atol=1e-3, rtol=0)


def test_without_class_token() -> None:
    model = model_of({"mlp_head": HeadSpec("classifier", 3)}, class_token=False)
    assert pooled(model, IMAGES, "both").equal(pooled(model, IMAGES, "patches"))
    with pytest.raises(ModelError, match="no class token"):
        pooled(model, IMAGES, "cls")


def test_features_are_fp32_in_half_precision_too() -> None:
    model = model_of({"mlp_head": HeadSpec("classifier", 3)}).bfloat16()
    assert pooled(model, IMAGES, "both").dtype == torch.float32
