from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.training import ResolutionConfig
from pipeline.models.bundle import Preprocess
from pipeline.stream.batch import Batch
from pipeline.tasks.classification.module import Classification
from pipeline.train.replay import MOST_SAMPLES, examine

CLASSES, SIDE, SAMPLES = 3, 2, 20
JOB: Any = SimpleNamespace(
    seed=0,
    stage=SimpleNamespace(resolution=ResolutionConfig()),
    spec=SimpleNamespace(num_classes=CLASSES, backbone=SimpleNamespace(patch=(1, 1))),
    preprocess=Preprocess((0.0,), (1.0,), 1, (SIDE, SIDE)),
)


class Fragile(nn.Module):
    """Divides by zero where an image is black; its backward pass may break even where its output is finite."""

    def __init__(self, root: bool = False) -> None:
        super().__init__()
        self.first, self.brightness, self.head = nn.Identity(), Brightness(root), nn.Linear(1, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.brightness(self.first(images)))


class Brightness(nn.Module):
    def __init__(self, root: bool) -> None:
        super().__init__()
        self.root, self.scale = root, nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))[:, None] * self.scale
        return mean.sqrt() if self.root else self.scale / mean


def batch(size: int, black: int | None) -> Batch:
    images = torch.full((size, 1, SIDE, SIDE), 200, dtype=torch.uint8)
    if black is not None:
        images[black] = 0
    labels = torch.arange(size) % CLASSES
    ones = torch.ones(size)
    keys = [f"train-000000.tar/{row}" for row in range(size)]
    targets = {"label": labels, "label_mix": labels, "label_share": ones}
    return Batch({"image": images}, targets, ones, torch.arange(size) + 1000, keys, step=0)


def look(model: nn.Module, size: int, black: int | None) -> dict[str, Any]:
    torch.manual_seed(0)
    task = Classification(model, JOB.preprocess, [""] * CLASSES, 0.0)
    return examine(task, JOB, batch(size, black), lambda: None)


@pytest.mark.parametrize("black", [0, SAMPLES - 3])
def test_the_sample_and_the_module_are_named(black: int) -> None:
    found = look(Fragile(), SAMPLES, black)
    assert found["losses_not_finite"] == 1
    assert found["first_module_not_finite"] == "brightness"
    assert found["gradients_not_finite"]
    worst = found["samples"][0]
    assert (worst["slot"], worst["key"], worst["pixels"]) == (1000 + black, f"train-000000.tar/{black}", [0, 0])
    assert len(found["samples"]) == MOST_SAMPLES


def test_a_backward_pass_that_breaks_is_named() -> None:
    found = look(Fragile(root=True), 6, 2)
    assert (found["losses_not_finite"], found["first_module_not_finite"]) == (0, None)
    assert "'MulBackward0' returned nan" in found["anomaly"]


def test_a_sound_batch_is_found_sound() -> None:
    found = look(Fragile(), 6, None)
    assert (found["losses_not_finite"], found["first_module_not_finite"], found["anomaly"]) == (0, None, None)
    assert found["gradients_not_finite"] == []
    assert len(found["samples"]) == 6
    assert found["loss"] == pytest.approx(sum(sample["loss"] for sample in found["samples"]) / 6)
