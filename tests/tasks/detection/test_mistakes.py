from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.metrics.average_precision import PredictedBoxes
from pipeline.models import MiniViT
from pipeline.models.bundle import Preprocess
from pipeline.models.model_spec import ModelSpec
from pipeline.models.variants import build_backbone
from pipeline.tasks.detection import Task
from pipeline.tasks.detection.mistakes import f1
from pipeline.tasks.detection.module import Detection

BOXES, LABELS = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), torch.tensor([0, 1])


def found(*rows: tuple[list[float], float, int]) -> PredictedBoxes:
    boxes, scores, labels = zip(*rows, strict=True) if rows else ([], [], [])
    return PredictedBoxes(
        torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], 0),
        ([([0, 0, 10, 10], 0.9, 0), ([20, 0, 30, 10], 0.8, 1)], 1),
        ([([0, 0, 10, 10], 0.9, 1)], 0),
        ([([0, 0, 10, 4], 0.9, 0)], 0),
        ([([0, 0, 10, 6], 0.9, 0)], 2 / 3),
        ([([0, 0, 10, 10], 0.9, 0), ([0, 0, 10, 9], 0.8, 0)], 1 / 2),
    ],
)
def test_each_labelled_box_is_found_once_by_one_of_its_class(
    rows: list[tuple[list[float], float, int]], expected: float
) -> None:
    assert f1(found(*rows), BOXES, LABELS) == pytest.approx(expected)


def test_nothing_in_an_empty_image_is_right() -> None:
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert f1(found(), *none) == 1
    assert f1(found(([0, 0, 1, 1], 0.9, 0)), *none) == 0


def test_what_is_shown_is_judged_and_drawn_without_crowds() -> None:
    task, classes = Task(), ["bag", "shoe"]
    backbone = build_backbone("nano", image_size=32, patch_size=4, depth=2, embed_dim=32, num_heads=2)
    model = MiniViT.from_spec(ModelSpec(backbone, task.heads(backbone, 2), "detection"))
    module = task.module(model, classes, Preprocess((0.5,) * 3, (0.25,) * 3, 3, (32, 32)))
    assert isinstance(module, Detection)
    batch = SimpleNamespace(
        targets={
            "boxes_full": torch.cat([BOXES, BOXES]).double(),
            "boxes_full.offsets": torch.tensor([0, 2, 4]),
            "box_label": torch.cat([LABELS, LABELS]),
            "box_crowd": torch.tensor([False, True, False, False]),
            "boxes_full_size": torch.tensor([[40, 60], [40, 60]], dtype=torch.int32),
        }
    )
    predicted = [
        found(([0, 0, 10, 10], 0.9, 0), ([0, 20, 10, 30], 0.001, 1)),
        found(([0, 0, 10, 10], 0.9, 0)),
    ]
    assert module.mistakes(predicted, batch).tolist() == pytest.approx([0, 1 / 3])
    one = module.compared(predicted, batch, 1)
    assert (one.size, one.caption) == ((40, 60), "F1 0.67")
    assert one.truth["labels"] == classes
    picture = np.zeros((40, 60, 3), np.uint8)
    assert (module.draw(picture, one.truth) != module.draw(picture, one.predicted)).any()
