from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config.training import ClassificationConfig
from pipeline.tasks import build_task
from pipeline.tasks.classification import Classification


@dataclass
class Labels:
    labels: Tensor
    labels_mix: Tensor
    mix: Tensor
    weights: Tensor


def draw(size: int, num_classes: int, seed: int, *, mixed: bool) -> tuple[Tensor, Labels]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (size,), generator=generator)
    partners = torch.randint(num_classes, (size,), generator=generator)
    mix = torch.rand(size, generator=generator) if mixed else torch.ones(size)
    return torch.randn(size, num_classes, generator=generator) * 3, Labels(labels, partners, mix, torch.ones(size))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("mixed", [False, True])
def test_loss_is_cross_entropy_against_the_mixed_target(smoothing: float, mixed: bool) -> None:
    task = Classification(ClassificationConfig(label_smoothing=smoothing), 7)
    logits, batch = draw(32, 7, 0, mixed=mixed)
    own, partner = (F.one_hot(labels, 7).float() for labels in (batch.labels, batch.labels_mix))
    target = batch.mix[:, None] * own + (1 - batch.mix[:, None]) * partner
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
    losses, returned = task.loss(lambda images: logits, torch.empty(0), batch)
    torch.testing.assert_close(losses, expected)
    assert returned.dtype == torch.float32


def test_loss_is_computed_in_fp32_for_a_bf16_model() -> None:
    task = Classification(ClassificationConfig(), 7)
    logits, batch = draw(16, 7, 1, mixed=False)
    rounded = logits.bfloat16()
    losses, _ = task.loss(lambda images: rounded, torch.empty(0), batch)
    torch.testing.assert_close(losses, F.cross_entropy(rounded.float(), batch.labels, reduction="none"))


def test_stand_ins_add_nothing_to_loss_and_metrics() -> None:
    task = Classification(ClassificationConfig(), 5)
    logits, batch = draw(12, 5, 2, mixed=False)
    batch.weights[[1, 4, 11]] = 0
    counted = batch.weights > 0
    losses, _ = task.loss(lambda images: logits, torch.empty(0), batch)
    assert (losses[~counted] == 0).all()
    means = task.means(task.sums(losses, logits, batch))
    assert means["loss"] == pytest.approx(F.cross_entropy(logits[counted], batch.labels[counted]).item(), rel=1e-6)
    right = logits[counted].argmax(dim=1) == batch.labels[counted]
    assert means["accuracy"] == pytest.approx(right.float().mean().item())


@given(size=st.integers(1, 40), num_classes=st.integers(1, 12), cut=st.integers(0, 40), seed=st.integers(0, 999))
def test_metrics_add_up_over_parts(size: int, num_classes: int, cut: int, seed: int) -> None:
    task = Classification(ClassificationConfig(), num_classes)
    logits, batch = draw(size, num_classes, seed, mixed=False)
    batch.weights = (torch.rand(size, generator=torch.Generator().manual_seed(seed)) > 0.2).float()
    losses, _ = task.loss(lambda images: logits, torch.empty(0), batch)
    whole = task.sums(losses, logits, batch)
    parts = []
    for rows in (slice(0, min(cut, size)), slice(min(cut, size), size)):
        part = Labels(batch.labels[rows], batch.labels_mix[rows], batch.mix[rows], batch.weights[rows])
        parts.append(task.sums(losses[rows], logits[rows], part))
    torch.testing.assert_close(sum(parts), whole)
    top5 = (logits.topk(min(5, num_classes), dim=1).indices == batch.labels[:, None]).any(dim=1)
    assert float(whole[2]) == float(top5[batch.weights > 0].sum())
    assert float(whole[1]) <= float(whole[2]) <= float(whole[3])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_evaluation_neither_smooths_nor_mixes(smoothing: float) -> None:
    task = Classification(ClassificationConfig(label_smoothing=smoothing), 7)
    logits, batch = draw(32, 7, 3, mixed=True)
    batch.weights[5] = 0
    losses, returned = task.evaluate(lambda images: logits, torch.empty(0), batch)
    expected = F.cross_entropy(logits, batch.labels, reduction="none")
    torch.testing.assert_close(losses, expected * batch.weights)
    assert torch.equal(returned, logits)


def test_means_of_nothing_are_zero() -> None:
    task = Classification(ClassificationConfig(), 3)
    assert task.means(torch.zeros(4, dtype=torch.float64)) == {"loss": 0, "accuracy": 0, "top5": 0}


def test_a_task_is_found_by_its_config() -> None:
    task = build_task(ClassificationConfig(label_smoothing=0.2), 9)
    assert (type(task), task.num_classes, task.label_smoothing) == (Classification, 9, 0.2)
    assert task.means(torch.ones(4, dtype=torch.float64)).keys() == set(task.schema.names)
