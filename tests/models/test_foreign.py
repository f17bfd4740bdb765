from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform

from pipeline.config.data import PlainConfig
from pipeline.errors import ModelError
from pipeline.export import export
from pipeline.models import Bundle, MiniViT, Preprocess
from pipeline.models.clip_bridge import to_clip
from pipeline.models.foreign import load_foreign
from pipeline.tasks.pretrained import PretrainedMiniViT

Make = Callable[..., MiniViT]


def build(bundle: Bundle) -> MiniViT:
    model = MiniViT.from_spec(bundle.spec, init="torch").eval()
    model.load_state_dict(bundle.state)
    return model


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_timms_own_loading_by_name(cached_weights: Callable[[str], Any], name: str) -> None:
    theirs = cached_weights(name)
    bundle = load_foreign(f"timm:{name}")
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(build(bundle)(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert bundle.preprocess.mean == theirs.pretrained_cfg["mean"]
    assert bundle.preprocess.eval == PlainConfig(resize="shorter", crop_pct=0.9, interpolation="bicubic")
    assert bundle.classes is not None
    assert bundle.classes[:2] == ["n01440764", "n01443537"]
    assert load_foreign(f"timm:{name}", weights=False).spec == bundle.spec


def test_a_cut_off_machine_and_a_wrong_name_are_one_sentence(cached_weights: Callable[[str], Any]) -> None:
    for name in ("vit_tiny_patch16_224", "vit_teeny_patch16_224"):
        with pytest.raises(ModelError) as caught:
            load_foreign(f"timm:{name}")
        assert str(caught.value).startswith(f"timm:{name}: unavailable (")
        assert "use a name from timm.list_models" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_no_plain_vit_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"^timm:resnet18: found a ResNet, expected a plain Vision Transformer of timm$"
    ):
        load_foreign("timm:resnet18", weights=False)
    with pytest.raises(ModelError, match=r"^timm:vit_relpos_base_patch16_224: the timm checkpoint: "):
        load_foreign("timm:vit_relpos_base_patch16_224", weights=False)


@pytest.mark.parametrize("options", [{}, {"registers": 2, "embed_norm": True, "eps": 1e-5, "activation": "quick_gelu"}])
def test_our_own_export_comes_back_whole(small_model: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    """With its config.json next to it, a file defines everything: heads, a grid that is not square, classes."""
    ours = small_model(image_size=(16, 24), **options)
    how = PlainConfig(resize="shorter", crop_pct=0.8)
    preprocess = Preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 3, (16, 24), (0, 10, 20), how)
    bundle = Bundle(ours.state_dict(), ours.spec, preprocess, list("abcde"), {})
    path = export("timm", bundle, tmp_path / "out")
    images = torch.randn(2, 3, 16, 24)
    for reference in (str(path), f"timm:local-dir:{path.parent}"):
        back = load_foreign(reference)
        torch.testing.assert_close(build(back)(images), ours(images), atol=1e-5, rtol=1e-5)
        assert (back.classes, back.preprocess) == (list("abcde"), preprocess)
        assert load_foreign(reference, weights=False).spec == back.spec


def test_a_bare_file_of_timm(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=12, num_classes=3).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "another's"}))
    bundle = load_foreign(str(tmp_path / "weights.safetensors"))
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(build(bundle)(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_images_are_resized_and_cropped_as_timm_does(tmp_path: Path) -> None:
    """From an image file to logits: ours with the imported settings, theirs with its own transform."""
    theirs = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=3).eval()
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": {"depth": 2}}
    said = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    config["pretrained_cfg"] = said | {"num_classes": 3}
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = PretrainedMiniViT.from_bundle(load_foreign(f"timm:local-dir:{tmp_path}"))
    noise = np.random.default_rng(0).integers(256, size=(300, 420, 3), dtype=np.uint8)
    Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 4)).save(tmp_path / "photo.png")
    transform = create_transform((3, 224, 224), **said)
    with torch.inference_mode():
        expected = theirs(transform(Image.open(tmp_path / "photo.png"))[None]).softmax(-1)[0]
    [ours] = model.predict([tmp_path / "photo.png"])
    probabilities = [value for _, value in sorted(ours)]
    torch.testing.assert_close(torch.tensor(probabilities), expected, atol=2e-3, rtol=0)


def test_the_words_beside_clips_weights(small_model: Make, tmp_path: Path) -> None:
    ours = small_model(embed_norm=True, eps=1e-5)
    save_file(to_clip(ours.state_dict(), ours.spec), tmp_path / "clip.safetensors")
    said = {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 7, "mean": [0.5] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": said}))
    preprocess = load_foreign(str(tmp_path / "clip.safetensors"), num_heads=2, activation="gelu").preprocess
    assert preprocess.eval == PlainConfig(resize="pad", interpolation="bilinear")
    assert (preprocess.mean, preprocess.background) == ((0.5,) * 3, (7, 7, 7))


def test_a_bare_file_of_clip_with_what_it_does_not_say(small_model: Make, tmp_path: Path) -> None:
    ours = small_model(embed_norm=True, eps=1e-5)
    save_file(to_clip(ours.state_dict(), ours.spec), tmp_path / "clip.safetensors")
    bundle = load_foreign(str(tmp_path / "clip.safetensors"), num_heads=2, activation="gelu")
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(build(bundle)(images), ours(images), atol=1e-5, rtol=1e-5)


class Evil:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    for name in ("model.pth", "pytorch_model.bin"):
        torch.save({"blocks.0.attn.qkv.weight": Evil(tmp_path / "ran")}, tmp_path / name)
        with pytest.raises(ModelError, match=f"{name}: not a safetensors file, and pickles can run code; convert it"):
            load_foreign(str(tmp_path / name))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.pth").read_bytes())
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_foreign(str(tmp_path / "model.safetensors"))
    with pytest.raises(ModelError, match=r"absent\.safetensors: cannot be read"):
        load_foreign(str(tmp_path / "absent.safetensors"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", "ResNet"), ("swin_tiny_patch4_window7_224", "Swin"), ("convnext_atto", "ConvNeXt")],
)
def test_a_file_of_another_architecture_says_which(tmp_path: Path, name: str, expected: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in timm.create_model(name).state_dict().items()}, path)
    with pytest.raises(ModelError, match=f"weights.safetensors: .*suggests an? {expected}"):
        load_foreign(str(path))


def test_a_minivits_file_is_to_be_named_by_its_folder(small_model: Make, tmp_path: Path) -> None:
    save_file(small_model().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="suggests a MiniViT"):
        load_foreign(str(tmp_path / "model.safetensors"))
