"""Exports as a downstream user has them: from the files on disk, in a process that never imports this package."""

from __future__ import annotations

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
from pipeline.models.variants import build_backbone
from pipeline.tasks.pretrained import PretrainedMiniViT

SHORTER = PlainConfig(resize="shorter", crop_pct=0.875, interpolation="bicubic")
SQUASH = PlainConfig(interpolation="bilinear")
PROGRAM = Path(__file__).with_name("downstream_program.py")
# Folder, whose first word is the reader -> format, task, how images are resized, and the model's settings.
EXPORTS: dict[str, tuple[str, str, PlainConfig, dict[str, Any]]] = {
    "hugging_face_grey": ("hf", "classification", SHORTER, {}),
    "hugging_face_dinov2": ("hf", "classification", SQUASH, {"registers": 2, "layer_scale": 0.4}),
    "hugging_face_deit": ("hf", "classification", SHORTER, {"dist_token": True}),
    "timm": ("timm", "classification", SHORTER, {"registers": 1}),
    "onnx_masks": ("onnx", "segmentation", SQUASH, {}),
    "torch_export_masks": ("torch-export", "segmentation", SQUASH, {}),
}


def a_bundle(task: str, how: PlainConfig, options: dict[str, Any]) -> Bundle:
    backbone = build_backbone("nano", **{"image_size": 32, "depth": 2, "channels": 1, **options})
    spec = task_class(task)().model_spec(backbone, 3)
    model = MiniViT.from_spec(spec, init="torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return Bundle(model.state_dict(), spec, Preprocess((0.3,), (0.35,), 1, (32, 32), eval=how), ["a", "b", "c"], {})


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder of all exports, and what the process answered."""
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
    model = PretrainedMiniViT.from_bundle(a_bundle(task, how, options))
    with torch.no_grad():
        images = load_file(folder / "images.safetensors")["images"]
        expected = model(images)
    torch.testing.assert_close(answers[f"{name}/logits"], expected, atol=1e-4, rtol=0)
    if f"{name}/class_map" in answers:
        full = torch.nn.functional.interpolate(expected, (32, 32), mode="bilinear").argmax(dim=1)
        assert (answers[f"{name}/class_map"] == full).float().mean() > 0.999


@pytest.mark.parametrize("name", [name for name, (_, task, *_) in EXPORTS.items() if task == "classification"])
def test_a_picture_gives_the_same_from_file_to_logits(name: str, exports: tuple[Path, dict[str, Tensor]]) -> None:
    """Pixels are resized and cropped alike, to the rounding of a level or two of 255."""
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
