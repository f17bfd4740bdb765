from __future__ import annotations

import pytest
import torch

from pipeline.metrics.accuracy import top_sums


@pytest.mark.parametrize("num_classes", [3, 9])
def test_right_samples_are_counted_by_their_weight(num_classes: int) -> None:
    logits = torch.randn(40, num_classes, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % num_classes
    weights = (torch.arange(40) % 3 > 0).float()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(dim=1)  # how many classes are likelier
    expected = [((ranks < k) * weights).sum().item() for k in (1, 5)]
    assert top_sums(logits, labels, weights).tolist() == [*expected, weights.sum().item()]


@pytest.mark.parametrize("seed", range(4))
def test_accuracies_are_those_of_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(60, 12, generator=generator), torch.randint(12, (60,), generator=generator)
    weights = torch.randint(3, (60,), generator=generator).float()
    *right, total = top_sums(logits, labels, weights).tolist()
    for hits, k in zip(right, (1, 5), strict=True):
        expected = metrics.top_k_accuracy_score(
            labels.numpy(), logits.numpy(), k=k, sample_weight=weights.numpy(), labels=range(12)
        )
        assert hits / total == pytest.approx(expected, abs=1e-6)
