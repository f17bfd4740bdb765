"""The loss, the measures and the predictions of one process; `tests/train` covers several ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.config.data import SQUASH, PlainConfig
from pipeline.errors import ModelError
from pipeline.images.plain import geometry
from pipeline.metrics.average_precision import PredictedBoxes
from pipeline.models import MiniViT
from pipeline.models.bundle import Preprocess
from pipeline.models.model_spec import ModelSpec
from pipeline.models.spec import HeadSpec
from pipeline.models.variants import build_backbone
from pipeline.stream.batch import Batch
from pipeline.targets.boxes import BoxesTarget
from pipeline.tasks.detection import HEAD, Task
from pipeline.tasks.detection.module import Detection
from pipeline.tasks.detection.objects import at_full_size, evaluation_objects, placed
from pipeline.tasks.detection.pictures import Outlines
from pipeline.train.micro_batch import split

SIZE, CLASSES = 32, ["bag", "shoe", "coat"]
BACKBONE = build_backbone("nano", image_size=SIZE, patch_size=4, depth=2, embed_dim=32, num_heads=2)
HEADS: list[dict[str, Any]] = [
    {"head": "pyramid", "head_options": {"finest": 4, "hidden": 16}},
    {"head": "queries", "head_options": {"queries": 12, "depth": 2}},
]
HOWS = [
    SQUASH,
    PlainConfig(resize="shorter", crop_pct=0.875, interpolation="bilinear"),
    PlainConfig(resize="pad", interpolation="bicubic"),
]


def build(how: PlainConfig = SQUASH, **settings: Any) -> Detection:
    torch.manual_seed(0)
    task = Task(**settings)
    model = MiniViT.from_spec(ModelSpec(BACKBONE, task.heads(BACKBONE, 3), "detection"))
    return task.module(model, CLASSES, Preprocess((0.5,) * 3, (0.25,) * 3, 3, (SIZE, SIZE), eval=how))


def batch_of(boxes: list[list[list[float]]], weights: list[float] | None = None) -> SimpleNamespace:
    """Views in which objects are bright squares; box corners in pixels, class after them."""
    views = torch.zeros(len(boxes), 3, SIZE, SIZE, dtype=torch.uint8)
    for row, some in enumerate(boxes):
        for left, top, right, bottom, label in some:
            views[row, int(label), int(top) : int(bottom), int(left) : int(right)] = 255
    rows = torch.tensor([one for some in boxes for one in some]).view(-1, 5)
    offsets = torch.tensor(np.cumsum([0, *map(len, boxes)]))
    corners, labels = rows[:, :4], rows[:, 4].long()
    targets: dict[str, Tensor] = {
        "boxes": corners,
        "box_label": labels,
        "boxes_full": corners.double(),
        "box_area": (corners[:, 2:] - corners[:, :2]).prod(dim=1).double(),
        "box_crowd": torch.zeros(len(labels), dtype=torch.bool),
    }
    targets |= {f"{name}.offsets": offsets for name in list(targets)}
    targets["boxes_full_size"] = torch.full((len(boxes), 2), SIZE, dtype=torch.int32)
    return SimpleNamespace(
        views={"image": views},
        targets=targets,
        weights=torch.tensor(weights or [1.0] * len(boxes)),
        slots=torch.arange(len(boxes)),
    )


SOME = [[[2, 2, 14, 14, 0], [16, 10, 30, 30, 1]], [], [[8, 4, 20, 28, 2]]]


def called(task: Detection, batch: SimpleNamespace) -> Any:
    views = {"image": task.preprocess.normalise(batch.views["image"])}
    return task(views, batch.targets, batch.weights, {"image": batch.slots})


@pytest.mark.parametrize("settings", HEADS, ids=["pyramid", "queries"])
def test_a_few_steps_find_the_objects(settings: dict[str, Any]) -> None:
    """From random weights: the loss falls, and boxes come to lie around what they are to find."""
    task, batch = build(**settings).train(), batch_of(SOME)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(45):
        found = called(task, batch)
        loss = (found.losses / task.normalisers(batch).clamp(min=1)).sum()
        assert task.means(found.sums)["loss"] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    evaluated = called(task.eval(), batch)
    collectors = task.collectors(validation=True)
    collectors["precision"].add(evaluated.predicted, batch)
    assert collectors["precision"].measures()["map_50"] > 0.6


@pytest.mark.parametrize("settings", HEADS, ids=["pyramid", "queries"])
@pytest.mark.parametrize("training", [True, False])
def test_a_sample_of_weight_0_counts_nowhere(settings: dict[str, Any], training: bool) -> None:
    task = build(**settings).train(training)
    alone = called(task, batch_of(SOME))
    more = called(task, batch_of([*SOME, [[0, 0, 9, 9, 1]]], [1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(more.sums, alone.sums, rtol=1e-5, atol=1e-5)
    nothing = called(task, batch_of([[], []]))
    blank = batch_of([*SOME, []], [1.0, 1.0, 1.0, 0.0])
    fill = BoxesTarget(("json",)).fields((1, 1), evaluation=True)["boxes_full_size"].fill
    blank.targets["boxes_full_size"][3] = fill
    torch.testing.assert_close(called(task, blank).sums, alone.sums, rtol=1e-5, atol=1e-5)
    assert nothing.sums.isfinite().all()
    assert nothing.sums[len(nothing.sums) // 2 :].tolist() == [0.0] * (len(nothing.sums) // 2)


@pytest.mark.parametrize("settings", HEADS, ids=["pyramid", "queries"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_batch(settings: dict[str, Any], parts: int) -> None:
    """However unequal the numbers of objects are, what denoising draws included."""
    task = build(**settings).train()
    given = vars(batch_of(SOME, [1.0, 1.0, 1.0]))
    batch = Batch(**given, keys=["a", "b", "c"], step=0)
    whole, found = called(task, batch), [called(task, part) for part in split(batch, parts)]
    torch.testing.assert_close(sum(one.losses for one in found), whole.losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(one.sums for one in found), whole.sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(task.normalisers(batch), whole.sums[len(whole.sums) // 2 :])


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.resize)
@pytest.mark.parametrize("full", [(50, 31), (31, 50), (64, 64)])
def test_boxes_come_back_to_their_place(how: PlainConfig, full: tuple[int, int]) -> None:
    view, middle = (48, 32), torch.tensor([[full[1] * 0.4, full[0] * 0.45, full[1] * 0.6, full[0] * 0.55]])
    seen = placed(middle, full, view, how)
    expected = geometry(full, view, how).apply(middle.view(2, 2).numpy()).reshape(1, 4)
    np.testing.assert_allclose(seen.numpy(), expected / [32, 48, 32, 48], atol=1e-5)
    torch.testing.assert_close(at_full_size(seen, full, view, how), middle, atol=1e-3, rtol=1e-4)
    everything = at_full_size(torch.tensor([[-9.0, -9.0, 9.0, 9.0]]), full, view, how)
    assert everything.tolist() == [[0, 0, full[1], full[0]]]


def test_an_evaluation_expects_what_is_seen_but_no_crowds() -> None:
    targets = batch_of([[[0, 0, 4, 4, 0], [8, 8, 24, 24, 1], [8, 0, 24, 24, 2]]]).targets
    targets["box_crowd"][2] = True
    how = PlainConfig(resize="shorter", crop_pct=0.5, interpolation="bilinear")
    found = evaluation_objects(targets, (SIZE, SIZE), how)
    assert found.corners.tolist() == [[0, 0, 1, 1]]
    assert (found.labels.tolist(), found.counts) == ([1], [1])


def scripted(task: Detection, candidates: list[list[float]]) -> Tensor:
    """The model says this of every image: middles in shares, then logits."""
    said = torch.tensor(candidates)[None]
    task.model.get_submodule(HEAD).forward = lambda features: said.expand(len(features.tokens), -1, -1)  # type: ignore[method-assign]
    return torch.zeros(1, 3, SIZE, SIZE)


def test_predictions_are_the_best_of_those_that_overlap(tmp_path: Path) -> None:
    task = build().eval()
    images = scripted(
        task,
        [
            [0.5, 0.5, 0.4, 0.4, 2.0, -9, -9],
            [0.51, 0.5, 0.4, 0.4, 3.0, -9, -9],
            [0.51, 0.5, 0.4, 0.4, -9, 1.0, -9],
            [0.1, 0.1, 0.4, 0.2, -9, -9, -0.5],
            [0.9, 0.9, 0.1, 0.1, -9, -9, -3.0],
        ],
    )
    (found,) = task.predict(images, [(100, 200)])
    assert found["labels"] == ["bag", "shoe", "coat"]
    assert found["classes"] == [0, 1, 2]
    np.testing.assert_allclose(found["boxes"][0], [62, 30, 142, 70], atol=1e-3)
    np.testing.assert_allclose(found["boxes"][2], [0, 0, 60, 20], atol=1e-3)
    assert found["scores"] == sorted(found["scores"], reverse=True)
    assert len(task.predict(images, [(100, 200)], score=0.01)[0]["boxes"]) == 4
    assert task.predict(images, [(100, 200)], score=0.99)[0]["boxes"] == []
    assert json.loads(json.dumps(task.record(found))) == found
    assert task.summarise(images, [(100, 200)], 2)[0].keys() == {"bag", "shoe"}
    picture = np.zeros((100, 200, 3), np.uint8)
    drawn = task.draw(picture, found)
    assert drawn[69, 100].any()
    assert not picture.any(), "drawn into a copy"
    assert not task.draw(picture, task.predict(images, [(100, 200)], score=0.99)[0]).any()


@pytest.mark.parametrize("settings", HEADS, ids=["pyramid", "queries"])
def test_graphs_give_the_best_boxes_of_each_image(settings: dict[str, Any]) -> None:
    task = build(**settings).eval()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    images = torch.randn(3, 3, SIZE, SIZE)
    module = task.exported().eval()
    traced = torch.export.export(module, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    boxes, scores, classes = traced(images)
    assert task.output_names == ("boxes", "scores", "classes")
    for one, other in zip(module(images), (boxes, scores, classes), strict=True):
        torch.testing.assert_close(one, other)
    for found, box, score, label in zip(
        task.predict(images, [(SIZE, SIZE)] * 3, score=0.0), boxes, scores, classes, strict=True
    ):
        assert found["scores"][0] == pytest.approx(score[0].item(), rel=1e-4)
        assert found["classes"][0] == label[0]
        np.testing.assert_allclose(found["boxes"][0], (box[0] * SIZE).clamp(0, SIZE).tolist(), atol=1e-3)


def test_graphs_give_the_boxes_that_predictions_have() -> None:
    """Also of many objects with many candidates each, some of which are beaten only by candidates that are beaten."""
    task, generator = build().eval(), torch.Generator().manual_seed(0)
    middles = torch.rand(60, 1, 4, generator=generator) * torch.tensor([1.0, 1, 0.2, 0.2])
    near = torch.rand(60, 12, 4, generator=generator) * torch.tensor([0.04, 0.04, 0.02, 0.02])
    boxes = (middles + near).view(-1, 4)
    logits = torch.randn(len(boxes), 3, generator=generator) * 2
    images = scripted(task, torch.cat([boxes, logits], dim=1).tolist())
    (expected,) = task.predict(images, [(SIZE, SIZE)], score=0.0)
    with torch.no_grad():
        corners, scores, classes = (output[0] for output in task.exported()(images))
    assert len(expected["boxes"]) == len(scores) == 100
    np.testing.assert_allclose((corners * SIZE).numpy(), expected["boxes"], atol=1e-4)
    np.testing.assert_allclose(scores.numpy(), expected["scores"], atol=1e-6)
    assert classes.tolist() == expected["classes"]


def test_a_query_has_one_class_or_none() -> None:
    task = build(head="queries").eval()
    images = scripted(task, [[0.5, 0.5, 0.4, 0.4, 0, 3.0, 2.9, 0], [0.2, 0.2, 0.1, 0.1, 0, 0, 1.0, 9.0]])
    (found,) = task.predict(images, [(50, 50)], score=0.01)
    assert found["labels"] == ["shoe"]


def test_pictures_have_labels_and_what_is_found(tmp_path: Path) -> None:
    batch = batch_of(SOME, [1.0, 1.0, 0.0])
    found = PredictedBoxes(torch.tensor([[1.0, 1.0, 9.0, 9.0]]), torch.tensor([0.8]), torch.tensor([2]))
    weak = found._replace(scores=torch.tensor([0.1]))
    outlines = Outlines(SQUASH, 0.3)
    outlines.add([found, weak, found], batch)
    other = Outlines(SQUASH, 0.3)
    other.merge(outlines.state())
    assert {slot: len(one.predicted.labels) for slot, one in other.shown.items()} == {0: 1, 1: 0}
    other.write(tmp_path, "a model", CLASSES)
    assert len(list((tmp_path / "pictures").glob("boxes-a-model-*.png"))) == 2


def test_settings_become_the_head() -> None:
    assert Task().heads(BACKBONE, 6) == {HEAD: HeadSpec("pyramid", 6)}
    task = Task(head="queries", layers=[0, 1], head_options={"queries": 9})
    assert task.heads(BACKBONE, 6) == {
        HEAD: HeadSpec("queries", 6, {"layers": [0, 1], "queries": 9, "denoising": 1}),
    }
    assert Task(head="queries", denoising=0).heads(BACKBONE, 6) == {HEAD: HeadSpec("queries", 6)}
    assert Task(inference={"size": 64}).view_groups(evaluation=True)["image"].size == (64, 64)
    assert Task().unmixable() == "the boxes that the task detection learns from cannot be mixed"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"head": "conv"}, "a head that finds boxes, one of pyramid, queries"),
        ({"denoising": 2}, "denoising: found 2, but a pyramid head has no queries; leave it out"),
        ({"head": "queries", "denoising": -1}, "greater than or equal to 0"),
        ({"inference": {"score": 1.5}}, "less than or equal to 1"),
        ({"inference": {"most": 101}}, "less than or equal to 100"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        Task(**settings)


def test_what_the_backbone_cannot_see_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"^task.inference.size: the height 50 is not a multiple of the patch size 4"):
        Task(inference={"size": 50}).model_spec(BACKBONE, 6)


def test_a_model_is_judged_by_its_own_head_whatever_the_settings_name() -> None:
    own = build(head="queries")
    judged = Task().module(
        own.model, CLASSES, own.preprocess
    )  # of an evaluation: no head is named, and pyramid is the default
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert judged.predict(images, [(SIZE, SIZE)] * 2, score=0.0) == own.predict(
            images, [(SIZE, SIZE)] * 2, score=0.0
        )
        for module in (own.exported(), judged.exported()):
            torch.testing.assert_close(module(images), own.exported()(images))
