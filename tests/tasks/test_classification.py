from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.config.task import task_class
from pipeline.models.bundle import Preprocess
from pipeline.tasks.classification.module import Classification

PREPROCESS = Preprocess((0.5,), (0.5,), 1, (2, 2))


class Told(nn.Module):
    """Answers with the logits that it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def classification(logits: Tensor, label_smoothing: float = 0.0) -> Classification:
    names = [f"class {number}" for number in range(logits.shape[1])]
    return Classification(Told(logits), PREPROCESS, names, label_smoothing)


def draw(size: int, num_classes: int, seed: int, *, mixed: bool) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (size,), generator=generator)
    partners = torch.randint(num_classes, (size,), generator=generator)
    share = torch.rand(size, generator=generator) if mixed else torch.ones(size)
    targets = {"label": labels, "label_mix": partners, "label_share": share}
    return torch.randn(size, num_classes, generator=generator) * 3, targets


def apply(task: Classification, targets: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Losses or, in evaluation, predictions; and sums."""
    found = task({"image": torch.empty(0)}, targets, weights, {})
    return (found.losses, found.sums) if task.training else (found.predicted, found.sums)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("mixed", [False, True])
def test_loss_is_cross_entropy_against_the_mixed_target(smoothing: float, mixed: bool) -> None:
    logits, targets = draw(32, 7, 0, mixed=mixed)
    own, partner = (F.one_hot(targets[name], 7).float() for name in ("label", "label_mix"))
    target = targets["label_share"][:, None] * own + (1 - targets["label_share"][:, None]) * partner
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="sum")
    losses, sums = apply(classification(logits, smoothing), targets, torch.ones(32))
    torch.testing.assert_close(losses, expected[None])
    assert sums[0] == pytest.approx(expected.item())


def test_loss_is_computed_in_fp32_for_a_bf16_model() -> None:
    logits, targets = draw(16, 7, 1, mixed=False)
    rounded = logits.bfloat16()
    losses, _ = apply(classification(rounded), targets, torch.ones(16))
    torch.testing.assert_close(losses, F.cross_entropy(rounded.float(), targets["label"], reduction="sum")[None])


@pytest.mark.parametrize("training", [True, False])
def test_stand_ins_add_nothing_to_loss_and_measures(training: bool) -> None:
    logits, targets = draw(12, 5, 2, mixed=False)
    weights = torch.ones(12)
    weights[[1, 4, 11]] = 0
    counted = weights > 0
    task = classification(logits).train(training)
    means = task.means(apply(task, targets, weights)[1])
    labels = targets["label"]
    assert means["loss"] == pytest.approx(F.cross_entropy(logits[counted], labels[counted]).item(), rel=1e-6)
    right = logits[counted].argmax(dim=1) == labels[counted]
    assert means["accuracy"] == pytest.approx(right.float().mean().item())


@given(size=st.integers(1, 40), num_classes=st.integers(1, 12), cut=st.integers(0, 40), seed=st.integers(0, 999))
def test_measures_add_up_over_parts(size: int, num_classes: int, cut: int, seed: int) -> None:
    logits, targets = draw(size, num_classes, seed, mixed=False)
    weights = (torch.rand(size, generator=torch.Generator().manual_seed(seed)) > 0.2).float()
    _, whole = apply(classification(logits), targets, weights)
    parts = []
    for rows in (slice(0, min(cut, size)), slice(min(cut, size), size)):
        part = {name: values[rows] for name, values in targets.items()}
        parts.append(apply(classification(logits[rows]), part, weights[rows])[1])
    torch.testing.assert_close(sum(parts), whole)
    top5 = (logits.topk(min(5, num_classes), dim=1).indices == targets["label"][:, None]).any(dim=1)
    _, right, right_top5, samples, unmixed = whole.tolist()
    assert right_top5 == float(top5[weights > 0].sum())
    assert right <= right_top5 <= samples == unmixed == float(weights.sum())


def test_of_mixed_samples_only_the_loss_means_something() -> None:
    logits, targets = draw(8, 4, 5, mixed=True)
    task = classification(logits)
    mixed = apply(task, targets, torch.ones(8))[1]
    pure = apply(task, targets | {"label_share": torch.ones(8)}, torch.ones(8))[1]
    assert task.means(mixed).keys() == task.means(mixed + pure).keys() == {"loss"}
    assert task.means(pure).keys() == {"loss", "accuracy", "top5"}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_evaluation_neither_smooths_nor_mixes(smoothing: float) -> None:
    logits, targets = draw(32, 7, 3, mixed=True)
    weights = torch.ones(32)
    weights[5] = 0
    task = classification(logits, smoothing).eval()
    predicted, sums = apply(task, targets, weights)
    expected = F.cross_entropy(logits, targets["label"], reduction="none") * weights
    assert sums[0] == pytest.approx(expected.sum().item())
    assert task.means(sums).keys() == {"loss", "accuracy", "top5"}
    assert torch.equal(predicted, logits)


def test_means_of_nothing_are_zero() -> None:
    task = classification(torch.zeros(1, 3))
    assert task.means(torch.zeros(5, dtype=torch.float64)) == {"loss": 0, "accuracy": 0, "top5": 0}


def test_predictions_are_the_likeliest_classes_by_name() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    first, second = classification(logits).predict(torch.empty(2, 1, 2, 2), [(9, 9), (4, 5)], top_k=2)
    assert [name for name, _ in first] == ["class 1", "class 2"]
    assert second[0] == ("class 0", pytest.approx(logits.softmax(dim=1)[1, 0].item()))


def test_every_measure_of_the_schema_comes_out_of_the_sums() -> None:
    logits, targets = draw(4, 3, 0, mixed=False)
    task = classification(logits)
    sums = apply(task, targets, torch.ones(4))[1]
    assert len(sums) == len(task.sum_names)
    assert tuple(task.means(sums)) == task_class("classification").measured.names


def test_a_prediction_is_drawn_and_recorded() -> None:
    task = classification(torch.tensor([[0.0, 2.0, 1.0]]))
    predicted = task.predict(torch.empty(1, 1, 2, 2), [(40, 60)])[0]
    record = json.loads(json.dumps(task.record(predicted)))
    assert list(record["classes"]) == ["class 1", "class 2", "class 0"]
    assert sum(record["classes"].values()) == pytest.approx(1)
    picture = np.full((40, 60, 3), 90, np.uint8)
    drawn = task.draw(picture, predicted)
    assert drawn.shape == picture.shape
    assert (drawn != picture).any()
    assert task.files(predicted) == {}
