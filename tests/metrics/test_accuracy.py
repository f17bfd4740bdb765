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
