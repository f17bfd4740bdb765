from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.models.bundle import Bundle, Preprocess, load_bundle
from pipeline.models.minivit import MiniViT
from pipeline.models.variants import build_backbone
from pipeline.tasks.distillation.teacher import Teacher
from pipeline.tasks.mae import Task as MAETask

THEIRS = Preprocess((0.3,), (0.2,), 1, (12, 12))
WEIGHT = torch.zeros(1)


def test_it_sees_images_at_its_own_size_and_normalisation(teacher: str) -> None:
    """Of an even grey, whatever the student's normalisation, it sees that grey by its own."""
    for ours in (Preprocess((0.5,), (0.5,), 1, (8, 8)), Preprocess((0.1,), (2.0,), 1, (8, 8))):
        grey = ours.normalise(torch.full((2, 1, 8, 8), 51, dtype=torch.uint8))
        seen = Teacher(load_bundle(Path(teacher)), ours).images(grey)
        assert seen.shape == (2, 1, 12, 12)
        torch.testing.assert_close(seen, torch.full_like(seen, (0.2 - 0.3) / 0.2))


def test_images_of_its_own_kind_are_left_alone(teacher: str) -> None:
    images = torch.randn(2, 1, 12, 12)
    assert Teacher(load_bundle(Path(teacher)), THEIRS).images(images) is images
    other = replace(THEIRS, mean=(0.4,))
    seen = Teacher(load_bundle(Path(teacher)), other).images(images)
    torch.testing.assert_close(seen, images + (0.4 - 0.3) / 0.2)


def test_smaller_images_are_antialiased(teacher: str) -> None:
    """Stripes finer than its pixels become grey; without antialiasing they would stay stripes."""
    stripes = torch.zeros(1, 1, 48, 48)
    stripes[..., ::2] = 1
    seen = Teacher(load_bundle(Path(teacher)), Preprocess((0.0,), (1.0,), 1, (48, 48))).images(stripes)
    assert (seen * 0.2 + 0.3 - 0.5).abs()[..., 2:-2].max() < 0.02


def test_bicubic_overshoot_is_cut_to_what_an_image_can_hold(teacher: str) -> None:
    edges = torch.zeros(1, 1, 8, 8)
    edges[..., 3:5] = 1
    pixels = Teacher(load_bundle(Path(teacher)), Preprocess((0.0,), (1.0,), 1, (8, 8))).images(edges) * 0.2 + 0.3
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_and_tokens_are_those_of_the_model_in_the_bundle(teacher: str, dtype: torch.dtype) -> None:
    bundle = load_bundle(Path(teacher))
    model = MiniViT.from_spec(bundle.spec)
    model.load_state_dict(bundle.state)
    model.to(dtype).eval()
    images = torch.randn(3, 1, 12, 12)
    told = Teacher(load_bundle(Path(teacher)), THEIRS)
    weight = torch.zeros(1, dtype=dtype, requires_grad=True)
    assert torch.equal(told.logits(images, weight), model(images).float())
    seen = told.tokens(images, weight)
    assert seen.cls is not None
    tokens = torch.cat([seen.cls, seen.patches], dim=1)
    assert torch.equal(tokens, model.forward_features(images).float())
    assert seen.grid == (4, 4)
    assert not tokens.requires_grad


def test_a_teacher_of_another_task_gives_its_encoders_tokens(tmp_path: Path) -> None:
    """A masked autoencoder with computed positions, whose decoder nobody asks."""
    task = MAETask()
    backbone = build_backbone("nano", image_size=12, patch_size=3, channels=1, depth=2, positions="sincos")
    model = MiniViT.from_spec(task.model_spec(backbone, 0)).eval()
    folder = Bundle(model.state_dict(), model.spec, THEIRS, []).save(tmp_path / "mae")
    images, weight = torch.randn(2, 1, 12, 12), torch.zeros(1, dtype=torch.bfloat16)
    seen = Teacher(load_bundle(folder), THEIRS).tokens(images, weight)
    assert torch.equal(seen.patches, model.bfloat16().forward_features(images).float()[:, 1:])
