from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.models import MiniViT, ModelSpec
from pipeline.models.foreign import load_foreign
from pipeline.models.hf_bridge import from_hugging_face

Randomise = Callable[[nn.Module], None]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4}
MLP = {"intermediate_size": 96}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", "ViTConfig", MLP),
    "ViT without biases of q, k, v": ("ViTForImageClassification", "ViTConfig", {**MLP, "qkv_bias": False}),
    "DeiT": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", MLP),
    "DeiT with one classifier": ("DeiTForImageClassification", "DeiTConfig", MLP),
    "DINOv2": ("Dinov2Model", "Dinov2Config", {}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"num_register_tokens": 3}),
}


def hugging_face(kind: str, randomise: Randomise, **options: Any) -> Any:
    """A randomised model of `transformers`, in eval mode."""
    model, config, own = KINDS[kind]
    settings = {**SHAPE, **own, "image_size": 16, "num_labels": 5, **options}
    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    randomise(made)
    return made


def answer(model: Any, images: Tensor) -> Tensor:
    """Logits, or the normed CLS token of a model without a head."""
    out = model(pixel_values=images)
    found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state[:, 0]
    return found


def ours(state: dict[str, Tensor], spec: ModelSpec, images: Tensor, headless: bool) -> Tensor:
    model = MiniViT.from_spec(spec, init="torch").eval()
    model.load_state_dict(state)
    if headless:
        normed: Tensor = model.mlp_head[0](model.forward_features(images)[:, 0])
        return normed
    logits: Tensor = model(images)
    return logits


@pytest.mark.parametrize("layout", ["as saved", "as in the modules"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_equal(kind: str, layout: str, randomise: Randomise, tmp_path: Path) -> None:
    theirs = hugging_face(kind, randomise)
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors") if layout == "as saved" else theirs.state_dict()
    found, spec = from_hugging_face(state, theirs.config.to_dict())
    images, headless = torch.randn(3, 3, 16, 16), "DINOv2" in kind
    torch.testing.assert_close(ours(found, spec, images, headless), answer(theirs, images), atol=1e-5, rtol=1e-5)


def test_a_folder_of_the_hub_says_heads_grid_classes_and_normalisation(randomise: Randomise, tmp_path: Path) -> None:
    theirs = hugging_face("ViT", randomise, image_size=[16, 24], id2label={n: f"class {n}" for n in range(5)})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": dict(reversed(config["id2label"].items())), "image_size": {"height": 17, "width": 27}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8-sig")
    usual = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(usual))
    path = str(tmp_path / "model.safetensors")
    bundle = load_foreign(path)
    assert (bundle.spec.backbone.grid, bundle.spec.backbone.num_heads, bundle.spec.backbone.eps) == ((4, 6), 4, 1e-12)
    assert bundle.classes == [f"class {n}" for n in range(5)]
    assert (bundle.preprocess.mean, bundle.preprocess.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert load_foreign(path, weights=False).spec == bundle.spec
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(usual | {"image_std": "0.2"}))
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: image_std: found '0\.2', expected a number$"):
        load_foreign(path, weights=False)
    images = torch.randn(2, 3, 16, 24)
    found = ours(bundle.state, bundle.spec, images, headless=False)
    expected = theirs(pixel_values=images, interpolate_pos_encoding=False).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_bare_file_needs_only_what_it_does_not_say(randomise: Randomise, tmp_path: Path) -> None:
    theirs = hugging_face("ViT", randomise)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    bundle = load_foreign(str(tmp_path / "weights.safetensors"), num_heads=4)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        ours(bundle.state, bundle.spec, images, False), answer(theirs, images), atol=1e-5, rtol=1e-5
    )
    assert bundle.classes is None


def test_a_classifier_that_reads_more_than_cls_is_left_out_aloud(
    randomise: Randomise, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.Dinov2Config(**SHAPE, image_size=16, num_labels=5)
    theirs = transformers.Dinov2ForImageClassification(config)
    randomise(theirs)
    with caplog.at_level(logging.WARNING):
        state, spec = from_hugging_face(theirs.state_dict(), config.to_dict())
    assert "its classifier reads 32 channels besides CLS and is left out" in caplog.text
    assert spec.num_classes == 1
    assert not state["mlp_head.1.weight"].any()


def test_what_a_minivit_has_no_place_for_is_refused_by_name(randomise: Randomise, tmp_path: Path) -> None:
    swiglu = transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, image_size=16, use_swiglu_ffn=True))
    with pytest.raises(ModelError, match=r"its tensor 'encoder\.layer\.0\.mlp\.\w+.*seems to be .*SwiGLU"):
        from_hugging_face(swiglu.state_dict())
    state = hugging_face("ViT", randomise).state_dict()
    with pytest.raises(ModelError, match=r"found no tensor for 'pos_embed'; give the model's whole file"):
        from_hugging_face({key: value for key, value in state.items() if "position" not in key})
    with pytest.raises(ModelError, match=r"layer 1 has no query, key or value"):
        from_hugging_face({key: value for key, value in state.items() if "layers.1.attention.k_proj" not in key})
    oblong = hugging_face("ViT", randomise, image_size=[16, 24]).state_dict()
    with pytest.raises(ModelError, match=r"24 patch positions do not form a square grid; keep its config\.json"):
        from_hugging_face(oblong)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON"):
        load_foreign(str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json: not a JSON object; fix or remove it"):
        load_foreign(str(tmp_path / "model.safetensors"))
