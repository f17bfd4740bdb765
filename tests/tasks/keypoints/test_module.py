"""The loss, the measures and the predictions of one process; `tests/train` covers several ranks."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.data import PlainConfig
from pipeline.errors import ModelError
from pipeline.images.frame import frame_matrix
from pipeline.images.geometry import transform
from pipeline.metrics.keypoints import ImageInstances
from pipeline.models import MiniViT
from pipeline.models.bundle import Preprocess
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_backbone
from pipeline.tasks.keypoints import Task, sides_of
from pipeline.tasks.keypoints.heat_maps import gaussians
from pipeline.tasks.keypoints.module import KeypointDetection

SIZE, NAMES = 16, ["nose", "left ear", "right ear"]
K = len(NAMES)
BACKBONE = build_backbone("nano", image_size=SIZE, patch_size=4, depth=2, embed_dim=32, num_heads=2)


def preprocess(size: int = SIZE) -> Preprocess:
    return Preprocess((0.5,) * 3, (0.25,) * 3, 3, (size, size), eval=PlainConfig())


def build(**settings: Any) -> KeypointDetection:
    torch.manual_seed(0)
    task = Task(**settings)
    model = MiniViT.from_spec(ModelSpec(BACKBONE, task.heads(BACKBONE, K), "keypoints"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return task.module(model, NAMES, preprocess())


def train_batch(size: int = 6) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(1)
    keypoints = torch.cat(
        [SIZE * torch.rand(size, K, 2, generator=generator), torch.randint(0, 3, (size, K, 1), generator=generator)],
        dim=2,
    )
    keypoints[1, :, 2] = 0  # an image without instances
    return SimpleNamespace(
        views={"image": torch.randn(size, 3, SIZE, SIZE, generator=generator)},
        targets={"keypoints": keypoints, "mirrored": torch.arange(size) % 2 == 0},
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


def call(module: KeypointDetection, batch: SimpleNamespace) -> Any:
    return module(batch.views, batch.targets, batch.weights, batch.keys)


def test_the_loss_is_the_squared_error_of_the_labelled_keypoints_maps() -> None:
    module, batch = build(), train_batch()
    maps, expected, count = module.model(batch.views["image"]), 0.0, 0
    for row in range(6):
        for place in range(K):
            swapped = [0, 2, 1][place] if batch.targets["mirrored"][row] else place
            *point, flag = batch.targets["keypoints"][row, swapped]
            if flag > 0:
                wanted = gaussians(torch.stack(point)[None, None], (SIZE, SIZE), (16, 16), 2.0)[0, 0]
                expected += float((maps.detach()[row, place] - wanted).square().mean())
                count += 1
    found = call(module, batch)
    assert module.normalisers(batch).tolist() == [count]
    assert found.losses.item() == pytest.approx(expected, rel=1e-5)
    assert module.means(found.sums) == {"loss": pytest.approx(expected / count, rel=1e-5)}


def test_cutting_a_batch_changes_neither_loss_nor_gradient() -> None:
    batch, found = train_batch(), []
    for bounds in ([(0, 6)], [(0, 1), (1, 2), (2, 6)]):
        module = build()
        total = sum(module.normalisers(cut(batch, slice(*part))) for part in bounds)
        sums = torch.zeros(4, dtype=torch.float64)
        for part in bounds:
            losses, own, *_ = call(module, cut(batch, slice(*part)))
            (losses / total).sum().backward()
            sums += own
        gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        found.append((module.means(sums), gradient))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-7)


def test_a_stand_in_counts_nowhere() -> None:
    module, batch = build(), train_batch()
    without = cut(batch, slice(0, 5))
    batch.weights[5] = 0
    assert torch.equal(module.normalisers(batch), module.normalisers(without))
    found, expected = call(module, batch), call(module, without)
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(found.sums, expected.sums)


class Spots(nn.Module):
    """A model that finds keypoint k as a bright spot in channel k."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return ((images + 2) / 4).clamp(0, 1)


SIDE = 32
BOXES = [np.array([[10.0, 20, 50, 60], [70, 5, 90, 45]]), np.zeros((0, 4)), np.array([[0.0, 0, 30, 30]])]
FULL = [(80, 100), (40, 40), (50, 60)]


def points_of(boxes: np.ndarray, seed: int) -> np.ndarray:
    """Keypoints [n, K, 2] well within their boxes."""
    shares = np.random.default_rng(seed).uniform(0.1, 0.9, (len(boxes), K, 2))
    return boxes[:, None, :2] + shares * (boxes[:, 2:] - boxes[:, :2])[:, None]


def eval_batch() -> SimpleNamespace:
    """Three images with two, no and one instance; the views show their keypoints as spots."""
    every, views = [points_of(boxes, seed) for seed, boxes in enumerate(BOXES)], []
    for boxes, points in zip(BOXES, every, strict=True):
        for box, own in zip(boxes, points, strict=True):
            seen = torch.from_numpy(transform(frame_matrix(box, (SIDE, SIDE)), own))
            views.append((255 * gaussians(seen[None], (SIDE, SIDE), (SIDE, SIDE), 2.0)[0]).round().to(torch.uint8))
    counts = [len(boxes) for boxes in BOXES]
    flags = np.full((3, K, 1), 2.0)
    flags[1, 1] = 0
    triples = np.concatenate([np.concatenate(every), flags], axis=2)
    offsets = torch.tensor(np.cumsum([0, *counts]))
    return SimpleNamespace(
        views={"image": torch.zeros(3, 3, SIDE, SIDE)},
        targets={
            "instance_keypoints": torch.from_numpy(triples),
            "instance_boxes": torch.from_numpy(np.concatenate(BOXES)),
            "instance_boxes.offsets": offsets,
            "instance_areas": torch.ones(3, dtype=torch.float64),
            "instance_views": torch.stack(views).flatten(),
            "keypoints_size": torch.tensor(FULL),
        },
        weights=torch.ones(3),
        slots=torch.arange(3),
        keys={"image": torch.arange(3)},
    )


def spots(**settings: Any) -> KeypointDetection:
    return KeypointDetection(Spots(), Task(**settings), NAMES, preprocess(SIDE)).eval()


@pytest.mark.parametrize("flip_test", [False, True])
def test_every_instance_is_judged_in_the_pixels_of_its_image(flip_test: bool) -> None:
    module, batch = spots(flip_pairs=[] if flip_test else None, flip_test=flip_test), eval_batch()
    sums, judged = call(module, batch)
    assert module.model.calls == 1 + flip_test
    assert sums[1:].tolist() == [8, 8, 8]
    means = module.means(sums)
    assert means["pck"] == 1.0
    assert means["loss"] < 1e-4
    assert [len(one.truth) for one in judged] == [2, 0, 1]
    for number, one in enumerate(judged):
        assert np.abs(one.predicted[..., :2] - points_of(BOXES[number], number)).max(initial=0) < 0.3
    results = module.collectors(validation=True)["results"]
    results.add(judged, batch)
    assert results.measures() == {"pck_visible": 1.0, "oks_ap": pytest.approx(1.0)}


def test_bad_samples_count_nowhere_and_a_batch_without_instances_calls_the_model() -> None:
    module, batch = spots(), eval_batch()
    batch.weights = torch.tensor([1.0, 1, 0])
    sums, _ = call(module, batch)
    assert sums[1:].tolist() == [5, 5, 5]
    empty = {name: value[:0] for name, value in batch.targets.items()} | {
        "instance_boxes.offsets": torch.zeros(4, dtype=torch.int64),
        "keypoints_size": torch.tensor(FULL),
    }
    module.model.calls = 0
    sums, judged = module(batch.views, empty, torch.ones(3), batch.keys)
    assert (sums.tolist(), module.model.calls) == ([0, 0, 0, 0], 1)
    assert [len(one.truth) for one in judged] == [0, 0, 0]
    assert module.means(sums) == {"loss": 0.0}


def test_the_flip_test_exchanges_left_and_right() -> None:
    module, images = build(flip_test=True), torch.randn(2, 3, SIZE, SIZE)
    plain, mirrored = module.model(images), module.model(images.flip(3)).flip(3)
    torch.testing.assert_close(module.tested(images), (plain + mirrored[:, [0, 2, 1]]) / 2)


def test_predictions_are_in_the_pixels_of_the_image_whatever_it_is_seen_at() -> None:
    """Of boxes, or of the whole image; the keypoints are spots in it."""
    module, full, seen = spots(), (60, 90), (96, 96)
    own = torch.tensor([[[20.0, 15], [60, 30], [45, 50]]], dtype=torch.float64)
    spotted = gaussians(own * torch.tensor([96 / 90, 96 / 60]), seen, seen, 4.0)[0]
    images = preprocess().normalise((255 * spotted).round().to(torch.uint8)[None])
    assert Task().predict_size((32, 32)) == seen
    whole, boxed = (
        module.predict(images, [full]),
        module.predict(images, [full], boxes=[[[5, 5, 70, 55], [0, 0, 90, 60]]]),
    )
    assert whole[0]["boxes"] == [[0, 0, 90, 60]]
    assert whole[0]["names"] == NAMES
    assert np.abs(np.array(whole[0]["keypoints"])[0, :, :2] - own[0].numpy()).max() < 1.0
    assert np.abs(np.array(boxed[0]["keypoints"])[0, :, :2] - own[0].numpy()).max() < 1.0
    assert np.allclose(boxed[0]["keypoints"][1], whole[0]["keypoints"][0])
    assert module.predict(images, [full], boxes=[[]]) == [{"boxes": [], "keypoints": [], "names": NAMES}]
    assert json.loads(json.dumps(module.record(whole[0]))) == whole[0]
    picture = module.draw(np.zeros((*full, 3), np.uint8), whole[0])
    assert picture[15, 20].any()
    assert module.files(whole[0]) == {}
    with pytest.raises(ModelError, match="predicts no classes"):
        module.summarise(images, [full], 3)


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[[1, 2, 3]]], "boxes of image 0 are not a list of"),
        ([[[1, 2, 1, 5]]], "a box of image 0 has no area"),
    ],
)
def test_wrong_boxes_are_refused_in_a_sentence(boxes: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        spots().predict(torch.zeros(1, 3, 96, 96), [(60, 90)], boxes=boxes)


def test_pairs_and_sigmas_go_by_the_names() -> None:
    assert sides_of(["left", "nose", "right", "left_eye", "right_eye", "upright"]) == [
        ("left", "right"),
        ("left_eye", "right_eye"),
    ]
    assert Task().mirror(NAMES) == [0, 2, 1]
    assert Task(flip_pairs=[]).mirror(NAMES) == [0, 1, 2]
    assert Task(flip_pairs=[["nose", "left ear"]]).measuring_settings == {"flip_pairs": [["nose", "left ear"]]}
    with pytest.raises(ModelError, match="flip_pairs: 'tail' is not a keypoint; allowed: nose, left ear, right ear"):
        Task(flip_pairs=[["nose", "tail"]]).check_classes(NAMES)
    with pytest.raises(ModelError, match="name each keypoint at most once"):
        Task(flip_pairs=[["nose", "left ear"], ["nose", "right ear"]]).check_classes(NAMES)
    with pytest.raises(ModelError, match="sigmas: found 1 for 3 keypoints; give one for each, in their order"):
        Task(sigmas=[0.1]).check_classes(NAMES)


def test_how_wrong_an_image_is_counts_labelled_keypoints_alone() -> None:
    module = spots()
    count = len(module.names)
    truth = np.full((1, count, 3), 10.0)
    truth[0, 0, 2] = 0
    guess = truth.copy()
    guess[0, :2, 0] = 30
    one = ImageInstances(truth, np.array([[0.0, 0.0, 40.0, 40.0]]), np.array([1600.0]), guess)
    batch = SimpleNamespace(targets={"keypoints_size": torch.tensor([[48, 64]])})
    assert module.mistakes([one], batch).tolist() == pytest.approx([1 / (count - 1)])
    found = module.compared([one], batch, 0)
    assert found.size == (48, 64)
    picture = np.zeros((48, 64, 3), np.uint8)
    assert (module.draw(picture, found.truth) != module.draw(picture, found.predicted)).any()
    unlabelled = {**found.truth, "keypoints": [found.truth["keypoints"][0][:1]]}
    assert (module.draw(picture, unlabelled) == module.draw(picture, {**unlabelled, "keypoints": []})).all()
