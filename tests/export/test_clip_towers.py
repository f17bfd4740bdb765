"""Both towers in the layouts of open_clip and Hugging Face, which load them strictly and give the same outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import load_model
from pipeline.config.task import task_class
from pipeline.errors import ModelError
from pipeline.export import COMMON, FORMATS, check_model, export
from pipeline.models import MiniViT
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.variants import build_backbone
from pipeline.tasks.pretrained import PretrainedMiniViT
from pipeline.text.training import train_tokenizer

CAPTIONS = ["a red ankle boot", "a blue dress", "", "one two three four five six seven eight nine ten"]
SETTINGS = {
    "embedding_dim": 24,
    "text": {"length": 10, "dim": 32, "depth": 2, "num_heads": 2},
    "tokenizer": {"size": 300},
}


def bundle(**changes: object) -> Bundle:
    """An image-text model with only random weights."""
    settings = {**SETTINGS, **{name: changes.pop(name) for name in ("loss",) if name in changes}}
    backbone = build_backbone(
        "nano", image_size=16, **{"depth": 2, "embed_norm": True, "activation": "quick_gelu", **changes}
    )
    spec = task_class("clip")(**settings).model_spec(backbone, 0)
    torch.manual_seed(0)
    model = MiniViT.from_spec(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokenizer = train_tokenizer(CAPTIONS * 4, 300, 10)
    channels = spec.backbone.channels
    preprocess = Preprocess((0.5,) * channels, (0.5,) * channels, channels, (16, 16), tokenizer=tokenizer)
    return Bundle(model.state_dict(), spec, preprocess, None, {})


def ours(found: Bundle, images: Tensor) -> tuple[Tensor, Tensor]:
    model = PretrainedMiniViT.from_bundle(found)
    with torch.no_grad():
        return model.task_module().embed_images(images), model.encode_text(CAPTIONS)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["open-clip", "hf-clip"])
def test_an_export_leaves_its_files(tmp_path: Path, form: str) -> None:
    for _ in range(2):
        export(form, bundle(), tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {*FORMATS[form].files, *COMMON}


@pytest.mark.parametrize("changes", [{}, {"loss": "sigmoid", "activation": "gelu"}])
def test_open_clip_computes_the_same(tmp_path: Path, images: Tensor, changes: dict[str, str]) -> None:
    open_clip = pytest.importorskip("open_clip")
    found = bundle(**changes)
    folder = export("open-clip", found, tmp_path / "out")
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    with torch.no_grad():
        pictures, texts = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    for theirs, mine in zip((pictures, texts), ours(found, images), strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-4, rtol=0)
    for name in ("logit_scale", *(["logit_bias"] if changes else [])):
        torch.testing.assert_close(getattr(model, name).detach()[None], found.state[f"temperature.{name}"])


def test_hugging_face_computes_the_same(tmp_path: Path, images: Tensor) -> None:
    from transformers import AutoTokenizer, CLIPModel

    found = bundle()
    folder = export("hf-clip", found, tmp_path / "out")
    model, told = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = AutoTokenizer.from_pretrained(folder)(
        CAPTIONS, padding="max_length", truncation=True, return_tensors="pt", max_length=10
    )
    with torch.no_grad():
        answer = model.eval()(**tokens, pixel_values=images)
    for theirs, mine in zip((answer.image_embeds, answer.text_embeds), ours(found, images), strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.logit_scale.detach()[None], found.state["temperature.logit_scale"])


def test_a_bundle_keeps_its_tokenizer(tmp_path: Path, images: Tensor) -> None:
    found = bundle()
    export("safetensors", found, tmp_path / "out")
    model = load_model(tmp_path / "out")
    torch.testing.assert_close(model.encode_text(CAPTIONS), ours(found, images)[1])
    with pytest.raises(ModelError, match=r"^encode_text: a classification model does not encode texts"):
        PretrainedMiniViT.from_bundle(classifier()).encode_text(CAPTIONS)
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer.json: does not match its SHA-256"):
        load_model(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()  # as a stage's own model has none
    with pytest.raises(ModelError, match=r"tokenizer.json: not a tokenizer.json \(Model missing"):
        load_model(tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer.json: cannot be read"):
        load_model(tmp_path / "out")


def test_embeddings_of_nothing() -> None:
    model = PretrainedMiniViT.from_bundle(bundle())
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 24)


def test_white_space_counts_as_in_captions() -> None:
    model = PretrainedMiniViT.from_bundle(bundle())
    torch.testing.assert_close(*model.encode_text([" a  red\nboot", "a red boot"]), atol=0, rtol=0)


def classifier() -> Bundle:
    backbone = build_backbone("nano", image_size=16, depth=1)
    spec = task_class("classification")().model_spec(backbone, 3)
    return Bundle(MiniViT.from_spec(spec).state_dict(), spec, Preprocess((0.5,) * 3, (0.5,) * 3, 3, (16, 16)), None, {})


@pytest.mark.parametrize(
    ("form", "changes", "reason"),
    [
        ("open-clip", {"embed_norm": False}, r"model\.embed_norm: found False"),
        ("open-clip", {"channels": 1}, r"model\.channels: found 1, but open_clip's image tower has 3"),
        ("hf-clip", {"pool": "avg"}, r"model\.pool: found avg"),
        ("hf-clip", {"loss": "sigmoid"}, r"task\.loss: found sigmoid, but a CLIPModel cannot hold its bias"),
    ],
)
def test_what_clip_cannot_be_is_refused(form: str, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        check_model(form, bundle(**changes).spec)


def test_a_model_without_texts_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^heads: open_clip needs an image tower and a text tower, but this cl"):
        check_model("open-clip", classifier().spec)
