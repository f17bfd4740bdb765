"""Exports as downstream users load them: from files on disk, in a process that never imports this package."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config.data import PlainConfig
from pipeline.config.task import task_class
from pipeline.export import export
from pipeline.models import MiniViT
from pipeline.models.bundle import Bundle, Preprocess
from pipeline.models.spec import Windows
from pipeline.models.variants import build_backbone
from pipeline.tasks.pretrained import PretrainedMiniViT
from pipeline.text.training import train_tokenizer

pytestmark = pytest.mark.timeout(900)  # the fixture's exports take minutes on a busy machine
PROGRAM = Path(__file__).with_name("downstream_program.py")
TEXTS = runpy.run_path(str(PROGRAM))["TEXTS"]
SHORTER = PlainConfig(resize="shorter", crop_pct=0.875, interpolation="bicubic")
SQUASH = PlainConfig(interpolation="bilinear")
Settings = dict[str, Any]
CLASSIFIER: Settings = {"type": "classification"}
MASKS: Settings = {"type": "segmentation"}
BOXES: Settings = {"type": "detection", "head_options": {"finest": 4, "coarsest": 16, "hidden": 16}}
QUERIES: Settings = {"type": "detection", "head": "queries", "head_options": {"queries": 5, "depth": 1}}
POINTS: Settings = {"type": "keypoints"}
DEPTH: Settings = {"type": "depth", "head_options": {"hidden": 8}}
CLIP: Settings = {
    "type": "clip",
    "text": {"length": 12, "dim": 16, "depth": 1, "num_heads": 2},
    "embedding_dim": 24,
    "tokenizer": {"size": 280},
}
# Folder, whose first word is the reader -> format, task, how images are resized, and the model's settings.
EXPORTS: dict[str, tuple[str, Settings, PlainConfig, dict[str, Any]]] = {
    "hugging_face_grey": ("hf", CLASSIFIER, SHORTER, {}),
    "hugging_face_dinov2": ("hf", CLASSIFIER, SQUASH, {"registers": 2, "layer_scale": 0.4}),
    "hugging_face_deit": ("hf", CLASSIFIER, SHORTER, {"dist_token": True}),
    "timm": ("timm", CLASSIFIER, SHORTER, {"registers": 1}),
    "onnx_labels": ("onnx", CLASSIFIER, SQUASH, {}),
    "onnx_masks": ("onnx", MASKS, SQUASH, {}),
    "onnx_boxes": ("onnx", BOXES, SQUASH, {"windows": Windows(4)}),
    "onnx_queries": ("onnx", QUERIES, SQUASH, {}),
    "onnx_points": ("onnx", POINTS, SQUASH, {}),
    "onnx_depth": ("onnx", DEPTH, SQUASH, {}),
    "onnx_clip": ("onnx", CLIP, SQUASH, {}),
    "torch_export_labels": ("torch-export", CLASSIFIER, SQUASH, {}),
    "torch_export_masks": ("torch-export", MASKS, SQUASH, {}),
    "torch_export_boxes": ("torch-export", BOXES, SQUASH, {}),
    "torch_export_queries": ("torch-export", QUERIES, SQUASH, {}),
    "torch_export_points": ("torch-export", POINTS, SQUASH, {}),
    "torch_export_depth": ("torch-export", DEPTH, SQUASH, {}),
    "torch_export_clip": ("torch-export", CLIP, SQUASH, {}),
}


def a_bundle(settings: Settings, how: PlainConfig, options: dict[str, Any]) -> Bundle:
    settings = dict(settings)
    task = task_class(settings.pop("type"))(**settings)
    backbone = build_backbone("nano", **{"image_size": 32, "depth": 2, "channels": 1, **options})
    spec = task.model_spec(backbone, 3)
    model = MiniViT.from_spec(spec, init="torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    tokenizer = train_tokenizer([*TEXTS] * 9, 280, 12) if spec.task == "clip" else None
    preprocess = Preprocess((0.3,), (0.35,), 1, (32, 32), eval=how, tokenizer=tokenizer)
    return Bundle(model.state_dict(), spec, preprocess, None if tokenizer else ["a", "b", "c"], {})


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder of all exports, and the outputs of the process."""
    folder = tmp_path_factory.mktemp("exports")
    for name, (form, *model) in EXPORTS.items():
        export(form, a_bundle(*model), folder / name)
    generator = np.random.default_rng(0)
    waves = np.add.outer(np.sin(np.arange(90) / 7), np.cos(np.arange(120) / 11))[:, :, None] * [40, 60, 30]
    picture = (128 + waves + generator.normal(0, 4, (90, 120, 3))).clip(0, 255).astype(np.uint8)
    Image.fromarray(picture).save(folder / "picture.png")
    save_file(
        {"images": torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))}, folder / "images.safetensors"
    )
    done = subprocess.run([sys.executable, PROGRAM, folder], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, load_file(folder / "answers.safetensors")


@pytest.mark.parametrize("name", EXPORTS)
def test_outputs_are_those_of_training(name: str, exports: tuple[Path, dict[str, Tensor]]) -> None:
    folder, answers = exports
    _, task, how, options = EXPORTS[name]
    model = PretrainedMiniViT.from_bundle(a_bundle(task, how, options)).task_module()
    with torch.no_grad():
        outputs = model.exported()(load_file(folder / "images.safetensors")["images"])
        expected = dict(zip(model.output_names, [outputs] if isinstance(outputs, Tensor) else outputs, strict=True))
        if task is CLIP:
            expected["texts"] = model.embed_sentences(TEXTS)
    if model.ranked:  # boxes whose scores differ by rounding alone come in either order
        rows, read = (
            torch.cat([side[key].flatten(2) if side[key].ndim > 2 else side[key][..., None] for key in keys], dim=2)
            for side, keys in ((expected, [*expected]), (answers, [f"{name}/{what}" for what in expected]))
        )
        apart = (rows[:, :, None] - read[:, None]).abs().amax(dim=3)
        assert max(apart.amin(dim=1).max(), apart.amin(dim=2).max()) < 1e-4
        return
    for what, tensor in expected.items():
        found = answers[f"{name}/{what}"]
        if tensor.is_floating_point():
            torch.testing.assert_close(found, tensor, atol=1e-4, rtol=1e-4)
        else:
            assert found.shape == tensor.shape
            assert (found == tensor).float().mean() > 0.999


@pytest.mark.parametrize(
    "name", [name for name, (form, task, *_) in EXPORTS.items() if task is CLASSIFIER and form in ("hf", "timm")]
)
def test_a_picture_gives_the_same_from_file_to_logits(name: str, exports: tuple[Path, dict[str, Tensor]]) -> None:
    """Pixels are resized and cropped in the same way, up to rounding by one or two levels of 255."""
    folder, answers = exports
    _, task, how, options = EXPORTS[name]
    model = PretrainedMiniViT.from_bundle(a_bundle(task, how, options))
    pixels, _ = model._read([folder / "picture.png"])
    found = answers[f"{name}/pixels"]
    if found.shape[1] == 3:
        found = (found * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)
    levels = (found - pixels).abs() * 0.35 * 255
    assert levels.max() < 2.5
    assert levels.mean() < 0.75
    with torch.no_grad():
        expected = model(pixels)
    torch.testing.assert_close(answers[f"{name}/picture"], expected, atol=0.02, rtol=0)
    if f"{name}/scores" in answers:
        torch.testing.assert_close(answers[f"{name}/scores"], expected[0].softmax(dim=0), atol=0.01, rtol=0)
