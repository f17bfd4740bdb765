"""The loss, the measures and the predictions of one process; `tests/train` covers several ranks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.config.data import SQUASH, PlainConfig
from pipeline.errors import ModelError
from pipeline.images.depth_map import decode_depth
from pipeline.models import MiniViT
from pipeline.models.bundle import Preprocess
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone
from pipeline.tasks.depth import HEAD, Task
from pipeline.tasks.depth.module import DepthEstimation
from pipeline.tasks.depth.pictures import DepthMaps

SIZE = 16
BACKBONE = build_backbone("nano", image_size=SIZE, patch_size=4, depth=2, embed_dim=32, num_heads=2)
PREPROCESS = Preprocess((0.5,) * 3, (0.25,) * 3, 3, (SIZE, SIZE), eval=PlainConfig())


def build(**settings: Any) -> DepthEstimation:
    torch.manual_seed(0)
    task = Task(**{"head_options": {"hidden": 8}, **settings})
    model = MiniViT.from_spec(ModelSpec(BACKBONE, task.heads(BACKBONE, 0), "depth"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return task.module(model, [], PREPROCESS)


def train_batch(size: int = 6) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(1)
    depth = 0.5 + 5 * torch.rand(size, SIZE, SIZE, generator=generator)
    depth[torch.rand(size, SIZE, SIZE, generator=generator) < 0.3] = 0
    depth[1] = 0  # a crop in which nothing was measured
    depth[2, :12] = 0
    return SimpleNamespace(
        views={"image": torch.randn(size, 3, SIZE, SIZE, generator=generator)},
        targets={"depth": depth},
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


def call(module: DepthEstimation, batch: SimpleNamespace) -> Any:
    return module(batch.views, batch.targets, batch.weights, batch.keys)


@pytest.mark.parametrize("invariance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("head", ["dpt", "conv"])
def test_the_loss_is_eigen_s_of_each_image_over_measured_pixels(invariance: float, head: str) -> None:
    module, batch = build(scale_invariance=invariance, head=head), train_batch()
    logs = F.interpolate(module.model(batch.views["image"]), (SIZE, SIZE), mode="bilinear")[:, 0].detach().numpy()
    expected = []
    for guess, truth in zip(logs, batch.targets["depth"].numpy(), strict=True):
        if (truth > 0).any():
            errors = guess[truth > 0].astype(float) - np.log(truth[truth > 0].astype(float))
            expected.append((errors**2).mean() - invariance * errors.mean() ** 2)
    losses, sums, *_ = call(module, batch)
    assert module.normalisers(batch).tolist() == [5]
    assert losses.item() / 5 == pytest.approx(np.mean(expected), rel=1e-5)
    assert module.means(sums)["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert sums[2] == (batch.targets["depth"] > 0).sum()


def test_cutting_a_batch_changes_neither_loss_nor_gradient() -> None:
    batch, found = train_batch(), []
    for bounds in ([(0, 6)], [(0, 1), (1, 2), (2, 6)], [(0, 3), (3, 6)]):
        module = build()
        total = sum(module.normalisers(cut(batch, slice(*part))) for part in bounds)
        sums = torch.zeros(6, dtype=torch.float64)
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


class Painted(nn.Module):
    """A model that reads metres off the colour of each patch."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images[:, :1], 4).log()


def slope(height: int, width: int) -> np.ndarray:
    """From 2 to 6 metres; in a corner nothing was measured."""
    rows, columns = np.mgrid[:height, :width]
    depth = (2 + 2 * rows / height + 2 * columns / width).astype(np.float32)
    depth[: height // 4, : width // 4] = 0
    return depth


def eval_batch(depths: list[np.ndarray]) -> SimpleNamespace:
    """Depth at its own sizes, and views whose pixels hold the metres."""
    whole = [np.where(one > 0, one, 2.5) for one in depths]
    views = [torch.from_numpy(cv2.resize(one, (SIZE, SIZE), interpolation=cv2.INTER_AREA))[None] for one in whole]
    return SimpleNamespace(
        views={"image": torch.stack(views).float().expand(-1, 3, -1, -1)},
        targets={
            "depth_full": torch.from_numpy(np.concatenate([one.ravel() for one in depths])),
            "depth_full.offsets": torch.tensor(np.cumsum([0, *(one.size for one in depths)])),
            "depth_full_size": torch.tensor([one.shape for one in depths], dtype=torch.int32),
        },
        weights=torch.ones(len(depths)),
        slots=torch.arange(len(depths)),
        keys={"image": torch.arange(len(depths))},
    )


def painted() -> DepthEstimation:
    return DepthEstimation(Painted(), Task(), PREPROCESS).eval()


def test_it_is_judged_at_the_depth_s_own_size_and_predicts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = eval_batch([slope(32, 48), slope(20, 16)])
    sums, maps = call(painted(), batch)
    means = painted().means(sums)
    assert means["abs_rel"] < 0.05
    assert means["delta1"] > 0.99
    assert means["rmse"] < 0.2
    assert means["loss"] < 0.01
    assert sums[1:3].tolist() == [2, (slope(32, 48) > 0).sum() + (slope(20, 16) > 0).sum()]
    predicted = painted().predict(batch.views["image"], [(32, 48), (20, 16)])
    assert [one.dtype for one in predicted] == [np.float32] * 2
    for one, judged in zip(predicted, maps, strict=True):
        assert np.array_equal(one, judged.numpy())
    monkeypatch.setattr("pipeline.tasks._full_size.MOST_VALUES", 5 * 48)
    assert call(painted(), batch).sums.tolist() == pytest.approx(sums.tolist()), "in bands of rows"


def test_bad_samples_and_padding_count_nowhere_in_an_evaluation() -> None:
    expected, _ = call(painted(), eval_batch([slope(32, 48)]))
    more = eval_batch([slope(32, 48), slope(24, 24)])
    more.weights[1] = 0
    assert torch.equal(call(painted(), more).sums, expected)


def test_a_prediction_is_drawn_recorded_and_written() -> None:
    metres = slope(32, 48) + 1
    picture = painted().draw(np.zeros((32, 48, 3), np.uint8), metres)
    assert picture.shape == (32, 48, 3)
    record = painted().record(metres)
    assert json.loads(json.dumps(record))["metres"] == pytest.approx(
        {"nearest": metres.min(), "median": np.median(metres), "farthest": metres.max()}
    )
    ((name, steps),) = painted().files(metres).items()
    assert name == ".depth.png"
    read = decode_depth(cv2.imencode(".png", steps)[1].tobytes()) / 1000
    assert np.abs(read - metres).max() <= 0.00051
    with pytest.raises(ModelError, match="predicts no classes"):
        painted().summarise(torch.ones(1, 3, SIZE, SIZE), [(32, 48)], 3)


def test_pictures_show_truth_and_prediction_in_the_same_colours(tmp_path: Path) -> None:
    batch = eval_batch([slope(32, 48)])
    collector = DepthMaps(SQUASH)
    batch.views["image"] = batch.views["image"].to(torch.uint8)
    collector.add([torch.from_numpy(slope(32, 48))], batch)
    collector.write(tmp_path, "m", [])
    with Image.open(tmp_path / "pictures" / "depth-m-000.png") as drawn:
        pixels = np.array(drawn).astype(int)
    measured, predicted = pixels[:147, 226:446], pixels[:147, 452:672]
    assert np.abs(measured - predicted).max() == 0


def test_settings_become_the_head() -> None:
    assert Task().heads(BACKBONE, 0) == {HEAD: HeadSpec("dpt", 1, {"quantities": True})}
    task = Task(head="linear", layers=[1], head_options={"cells": 2})
    assert task.heads(BACKBONE, 0) == {HEAD: HeadSpec("linear", 1, {"layers": [1], "cells": 2, "quantities": True})}
    spec = task.model_spec(BACKBONE, 0)
    assert spec.num_classes == 0, "so that a bundle names no classes"
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ValidationError, match="one of conv, dpt, heat_maps, linear"):
        Task(head="mask_transformer")


def test_how_wrong_a_map_is_counts_measured_pixels_alone() -> None:
    truths = [slope(16, 24), np.zeros((8, 8), np.float32)]
    batch = eval_batch(truths)
    guesses = [torch.from_numpy(truths[0]) * 1.25, torch.ones(8, 8)]
    module = painted()
    assert module.mistakes(guesses, batch).tolist() == pytest.approx([0.25, 0])
    found = module.compared(guesses, batch, 0)
    assert (found.size, found.caption) == ((16, 24), "AbsRel 0.25")
    picture = np.zeros((16, 24, 3), np.uint8)
    for value in (found.truth, found.predicted):
        assert module.draw(picture, value).shape == picture.shape
