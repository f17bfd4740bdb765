"""The loss, the measures and the predictions of one process; `tests/train` covers several ranks."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config.data import PlainConfig
from pipeline.metrics.iou import IoUCounts
from pipeline.models import MiniViT
from pipeline.models.bundle import Preprocess
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_backbone
from pipeline.tasks.segmentation import Task
from pipeline.tasks.segmentation.module import Segmentation

K, SIZE = 3, 16
CLASSES = ["wall", "bag", "shoe"]


def preprocess(**how: Any) -> Preprocess:
    return Preprocess((0.5,) * 3, (0.25,) * 3, 3, (SIZE, SIZE), eval=PlainConfig(**how))


def build(**settings: Any) -> Segmentation:
    torch.manual_seed(0)
    task = Task(**settings)
    backbone = build_backbone("nano", image_size=SIZE, patch_size=4, depth=2, embed_dim=32, num_heads=2)
    model = MiniViT.from_spec(ModelSpec(backbone, task.heads(backbone, K), "segmentation"))
    module = task.module(model, CLASSES, preprocess())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module


def train_batch(size: int = 6) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(-1, K, (size, SIZE, SIZE), generator=generator, dtype=torch.int8)
    labels[1] = -1  # an image without any label
    labels[2, :12] = -1
    images = torch.randn(size, 3, SIZE, SIZE, generator=generator)
    return SimpleNamespace(
        views={"image": images},
        targets={"mask": labels},
        weights=torch.ones(size),
        keys={"image": torch.arange(size)},
    )


def cut(batch: SimpleNamespace, rows: slice) -> SimpleNamespace:
    return SimpleNamespace(
        views={name: value[rows] for name, value in batch.views.items()},
        targets={name: value[rows] for name, value in batch.targets.items()},
        weights=batch.weights[rows],
        keys={name: value[rows] for name, value in batch.keys.items()},
    )


def call(module: Segmentation, batch: SimpleNamespace) -> Any:
    return module(batch.views, batch.targets, batch.weights, batch.keys)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"head": "conv", "head_options": {"hidden": 8}}])
def test_the_loss_is_the_mean_cross_entropy_of_the_labelled_pixels(settings: dict[str, Any]) -> None:
    module, batch = build(**settings), train_batch()
    logits = F.interpolate(module.model(batch.views["image"]), (SIZE, SIZE), mode="bilinear")
    smoothing = settings.get("label_smoothing", 0.0)
    expected = F.cross_entropy(logits, batch.targets["mask"].long(), ignore_index=-1, label_smoothing=smoothing)
    losses, sums, *_ = call(module, batch)
    torch.testing.assert_close(losses[0] / module.normalisers(batch)[0], expected.double(), rtol=1e-5, atol=0)
    assert module.means(sums)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    kept = batch.targets["mask"] >= 0
    right = (logits.argmax(dim=1) == batch.targets["mask"])[kept].double().mean().item()
    assert module.means(sums)["pixel_accuracy"] == pytest.approx(right)


def test_cutting_a_batch_changes_neither_loss_nor_gradient() -> None:
    batch = train_batch()
    found = []
    for bounds in ([(0, 6)], [(0, 1), (1, 2), (2, 6)], [(0, 3), (3, 6)]):
        module = build(head="mask_transformer")
        total = sum(module.normalisers(cut(batch, slice(*part))) for part in bounds)
        sums = torch.zeros(2 + 3 * K, dtype=torch.float64)
        for part in bounds:
            losses, own, *_ = call(module, cut(batch, slice(*part)))
            (losses / total).sum().backward()
            sums += own
        gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        found.append((module.means(sums), gradient))
    for means, gradient in found[1:]:
        assert means == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-7)


def test_a_stand_in_counts_nowhere() -> None:
    module, batch = build(), train_batch()
    without = cut(batch, slice(0, 5))
    batch.weights[5] = 0
    assert torch.equal(module.normalisers(batch), module.normalisers(without))
    found, expected = call(module, batch), call(module, without)
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(found.sums, expected.sums)
    module.zero_grad()
    call(module, cut(batch, slice(5, 6)))[0].sum().backward()
    assert not any(parameter.grad.any() for parameter in module.parameters() if parameter.grad is not None)


class Painted(nn.Module):
    """A model that reads the class of each patch off its colour: pixels hold class numbers."""

    patch = (4, 4)

    def __init__(self, image_size: tuple[int, int] = (SIZE, SIZE)) -> None:
        super().__init__()
        self.spec = SimpleNamespace(backbone=SimpleNamespace(image_size=image_size))
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(tuple(images.shape[2:]))
        means = F.avg_pool2d(images[:, :1], 4)
        return -(means - torch.arange(K).view(1, K, 1, 1)).abs() * 10


def eval_batch(labels: list[np.ndarray], view: int = SIZE) -> SimpleNamespace:
    """Labels at their own sizes, and views in which pixels hold the class numbers."""
    views = [F.interpolate(torch.from_numpy(one)[None, None].float().clamp(0), (view, view))[0] for one in labels]
    flat = torch.from_numpy(np.concatenate([one.ravel() for one in labels]))
    return SimpleNamespace(
        views={"image": torch.stack(views).expand(-1, 3, -1, -1)},
        targets={
            "mask_full": flat,
            "mask_full.offsets": torch.tensor(np.cumsum([0, *(one.size for one in labels)])),
            "mask_full_size": torch.tensor([one.shape for one in labels], dtype=torch.int32),
        },
        weights=torch.ones(len(labels)),
        slots=torch.arange(len(labels)),
        keys={"image": torch.arange(len(labels))},
    )


def quarters(height: int, width: int) -> np.ndarray:
    """Three classes; a strip of the first is not labelled."""
    rows, columns = np.mgrid[:height, :width]
    labels = np.minimum(2 * rows // height + 2 * (2 * columns // width), 2).astype(np.int8)
    labels[:2, : width // 2] = -1
    return labels


def test_a_right_map_is_right_at_the_labels_own_size() -> None:
    module = Segmentation(Painted(), Task(), CLASSES, preprocess()).eval()
    labels = [quarters(32, 48), quarters(20, 16), quarters(16, 16)]
    batch = eval_batch(labels)
    sums, maps = call(module, batch)
    means = module.means(sums)
    assert means["mean_iou"] > 0.97
    assert means["pixel_accuracy"] > 0.98
    assert means["loss"] < 0.1
    assert [tuple(one.shape) for one in maps] == [one.shape for one in labels]
    assert sums[1] == sum((one >= 0).sum() for one in labels)
    counts = IoUCounts(K)
    counts.add(maps, batch)
    assert sums[2:].tolist() == counts.counts.flatten().tolist()
    assert module.predict(batch.views["image"], [one.shape for one in labels])[0].tolist() == maps[0].tolist()


def test_bad_samples_and_padding_count_nowhere_in_an_evaluation() -> None:
    module = Segmentation(Painted(), Task(), CLASSES, preprocess()).eval()
    empty = np.zeros((0, 0), np.int8)
    batch = eval_batch([quarters(32, 48), quarters(20, 16)])
    more = eval_batch([quarters(32, 48), quarters(20, 16), quarters(24, 24)])
    more.weights[2] = 0
    padded = eval_batch([quarters(32, 48), quarters(20, 16)])
    padded.views["image"] = torch.cat([padded.views["image"], torch.zeros(1, 3, SIZE, SIZE)])
    padded.targets["mask_full.offsets"] = torch.cat(
        [padded.targets["mask_full.offsets"], torch.tensor([32 * 48 + 20 * 16])]
    )
    padded.targets["mask_full_size"] = torch.cat([padded.targets["mask_full_size"], torch.tensor([empty.shape])])
    padded.weights = torch.tensor([1.0, 1.0, 0.0])
    expected, _ = call(module, batch)
    for other in (more, padded):
        sums, maps = call(module, other)
        assert torch.equal(sums, expected)
        assert len(maps) == 3


def test_windows_slide_over_a_larger_view() -> None:
    model = Painted()
    task = Task(inference={"size": 32, "stride": 8})
    module = Segmentation(model, task, CLASSES, preprocess()).eval()
    assert task.view_groups(evaluation=True)["image"].size == (32, 32)
    assert task.view_groups()["image"].size is None
    batch = eval_batch([quarters(32, 48)], view=32)
    sums, _ = call(module, batch)
    assert set(model.calls) == {(SIZE, SIZE)}
    assert len(model.calls) == 9
    assert module.means(sums)["mean_iou"] > 0.95


def test_a_class_map_is_drawn_recorded_and_kept() -> None:
    module = Segmentation(Painted(), Task(), CLASSES, preprocess())
    predicted = np.zeros((40, 60), np.uint8)
    predicted[20:] = 2
    predicted[:10, :6] = 1
    record = json.loads(json.dumps(module.record(predicted)))
    assert record == {"classes": {"shoe": 0.5, "wall": 0.475, "bag": 0.025}}
    kept = module.files(predicted)
    assert list(kept) == [".seg.png"]
    assert kept[".seg.png"].dtype == np.uint8
    assert (kept[".seg.png"] == predicted).all()
    picture = np.full((40, 60, 3), 90, np.uint8)
    drawn = module.draw(picture, predicted)
    assert drawn.shape == picture.shape
    assert (picture == 90).all()
    assert len({tuple(color) for color in drawn[np.array([39, 39]), np.array([0, 59])].tolist()}) == 1
    assert tuple(drawn[39, 59]) != tuple(drawn[10, 59]) != (90, 90, 90)


def test_how_wrong_a_map_is_counts_labelled_pixels_alone() -> None:
    module = Segmentation(Painted(), Task(), CLASSES, preprocess()).eval()
    labels = [quarters(32, 48), np.full((8, 8), -1, np.int8)]
    batch = eval_batch(labels)
    half = torch.from_numpy(labels[0]).long().clamp(0)
    half[16:, :24] = 1 - half[16:, :24].clamp(max=1)
    mistakes = module.mistakes([half, torch.zeros(8, 8)], batch)
    wrong = ((half.numpy() != labels[0]) & (labels[0] >= 0)).sum() / (labels[0] >= 0).sum()
    assert mistakes.tolist() == pytest.approx([wrong, 0])
    found = module.compared([half, torch.zeros(8, 8)], batch, 0)
    assert found.size == (32, 48)
    assert found.caption == f"{1 - wrong:.0%} of the labelled pixels right"
    picture = np.full((32, 48, 3), 90, np.uint8)
    drawn = module.draw(picture, found.truth)
    assert drawn.shape == picture.shape
    assert (module.draw(picture, found.predicted) != drawn).any()
