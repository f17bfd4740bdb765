from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from pipeline.config.task import task_class
from pipeline.errors import ModelError
from pipeline.models import MiniViT, ModelSpec
from pipeline.models.expressible import hf_layout
from pipeline.models.hf_bridge import from_hugging_face
from pipeline.models.hf_layout import to_hugging_face
from pipeline.models.pooled import pooled
from pipeline.models.spec import Windows
from pipeline.models.variants import build_backbone
from pipeline.models.weights_file import save_tensors

Randomise = Callable[[nn.Module], None]
CLASSES = ["ant", "bee", "cat"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit", {}),
    "oblong, without positions": ("vit", {"image_size": (16, 24), "positions": "none", "activation": "quick_gelu"}),
    "positions of patches alone": ("vit", {"prefix_positions": False, "eps": 1e-5, "mlp_dim": 100}),
    "layer scale, folded": ("vit", {"layer_scale": 0.3, "mlp_dim": 100}),
    "[DIST] and layer scale": ("deit", {"dist_token": True, "layer_scale": 0.3}),
    "layer scale": ("dinov2", {"layer_scale": 0.3, "activation": "relu"}),
    "registers": ("dinov2_with_registers", {"registers": 2, "positions": "sincos"}),
    "registers without positions": ("dinov2_with_registers", {"registers": 3, "prefix_positions": False}),
}


def a_model(randomise: Randomise, task: str = "classification", settings: Any = None, **options: Any) -> MiniViT:
    backbone = build_backbone("nano", **{"image_size": 16, "depth": 2, **options})
    spec = task_class(task)(**(settings or {})).model_spec(backbone, 3)
    model = MiniViT.from_spec(spec, init="torch").eval()
    randomise(model)
    return model


def loaded(folder: Path, model: MiniViT, auto: str, **options: Any) -> Any:
    """The model that `transformers` loads, without missing or unused tensors."""
    tensors, config = to_hugging_face(model.state_dict(), model.spec, CLASSES)
    save_tensors(folder / "model.safetensors", tensors)
    transformers.AutoConfig.for_model(**config).save_pretrained(folder)
    found, told = getattr(transformers, auto).from_pretrained(str(folder), output_loading_info=True, **options)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_classifiers_are_equal_there_and_back(kind: str, randomise: Randomise, tmp_path: Path) -> None:
    layout, options = KINDS[kind]
    model = a_model(randomise, **options)
    assert hf_layout(model.spec) == layout
    theirs = loaded(tmp_path, model, "AutoModelForImageClassification")
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    images = torch.randn(3, 3, *model.spec.backbone.image_size)
    expected = model(images)
    torch.testing.assert_close(theirs(pixel_values=images).logits, expected, atol=1e-5, rtol=1e-5)
    tensors, config = to_hugging_face(model.state_dict(), model.spec, CLASSES)
    back, spec = from_hugging_face(tensors, config)
    again = MiniViT.from_spec(spec, init="torch").eval()
    again.load_state_dict(back)
    torch.testing.assert_close(again(images), expected, atol=1e-5, rtol=1e-5)


def test_a_grey_model_sees_colours_as_grey(randomise: Randomise, tmp_path: Path) -> None:
    model = a_model(randomise, channels=1)
    theirs = loaded(tmp_path, model, "AutoModelForImageClassification")
    colour = torch.rand(2, 3, 16, 16)
    grey = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(theirs(pixel_values=colour).logits, model(grey), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "settings", "options"),
    [
        ("mae", {"decoder": {"dim": 32, "depth": 1}}, {"pool": "avg"}),
        ("lejepa", {}, {"registers": 2}),
        ("mae", {"decoder": {"dim": 32, "depth": 1}}, {"dist_token": True}),
    ],
)
def test_backbones_give_their_tokens_behind_the_last_norm(
    task: str, settings: Any, options: dict[str, Any], randomise: Randomise, tmp_path: Path
) -> None:
    """For dense use as maps, too; [DIST] has become a register."""
    model = a_model(randomise, task, settings, **options)
    theirs = loaded(tmp_path, model, "AutoModel")
    images = torch.randn(2, 3, 16, 16)
    tokens: Tensor = theirs(pixel_values=images).last_hidden_state
    prefix = model.spec.backbone.tokens.num_prefix
    torch.testing.assert_close(tokens[:, 0], pooled(model, images, "cls"), atol=1e-5, rtol=1e-5)
    mean = tokens[:, prefix:].mean(dim=1)
    norm = next(head.encoder_norm for head in model.heads.values())
    features = model.forward_features(images)[:, prefix:]
    expected = norm(features) if norm is not None else nn.functional.layer_norm(features, (64,), eps=1e-6)
    torch.testing.assert_close(mean, expected.mean(dim=1), atol=1e-5, rtol=1e-5)
    kind = "Dinov2WithRegistersBackbone" if prefix > 1 else "Dinov2Backbone"  # AutoBackbone asks the hub for a folder
    maps = loaded(tmp_path, model, kind)(pixel_values=images).feature_maps[-1]
    torch.testing.assert_close(maps, expected.transpose(1, 2).unflatten(2, (4, 4)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "options", "reason"),
    [
        ("classification", {"norm": "post"}, r"^model\.norm: found post, but transformers' ViT has pre$"),
        (
            "classification",
            {"pool": "avg"},
            r"^model\.pool: found avg, but the classifier of transformers' ViT reads cls$",
        ),
        ("classification", {"qk_norm": True}, r"^model\.qk_norm: is set, but transformers' ViT has none$"),
        ("classification", {"windows": Windows(2)}, r"^model\.windows: is set, but transformers' ViT has none$"),
        ("classification", {"class_token": False, "pool": "avg"}, r"^model\.class_token: found false"),
        ("classification", {"dist_token": True, "registers": 1}, r"^model\.registers: transformers' DeiT has none"),
        (
            "classification",
            {"registers": 1, "image_size": (16, 24)},
            r"^model\.image_size: found 16 x 24, expected a square; transformers' DINOv2, its only ViT with reg",
        ),
        (
            "mae",
            {"mlp_dim": 100},
            r"^model\.mlp_dim: found 100, expected a multiple of the width 64; .* with no classifier",
        ),
        (
            "segmentation",
            {},
            r"^heads: transformers' ViT only holds a classifier's heads, but this segmentat",
        ),
    ],
)
def test_what_no_architecture_has_is_named(
    task: str, options: dict[str, Any], reason: str, randomise: Randomise
) -> None:
    spec: ModelSpec = a_model(randomise, task, **options).spec
    with pytest.raises(ModelError, match=reason):
        hf_layout(spec)
