from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tasks import confusion
from pipeline.tasks.confusion import ConfusionCounts


@given(
    num_classes=st.integers(1, 9),
    sizes=st.lists(st.integers(0, 20), max_size=6),
    ranks=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_batches_and_ranks_add_up_to_the_matrix(num_classes: int, sizes: list[int], ranks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts, expected = [ConfusionCounts(num_classes) for _ in range(ranks)], np.zeros((num_classes, num_classes))
    for number, size in enumerate(sizes):
        true, predicted = rng.integers(num_classes, size=(2, size))
        true = np.where(rng.random(size) < 0.2, -1, true)  # does not count
        np.add.at(expected, (true[true >= 0], predicted[true >= 0]), 1)
        counts[number % ranks].add(torch.from_numpy(true), torch.from_numpy(predicted))
    for other in counts[1:]:
        counts[0].merge(other.table())
    table = counts[0].table()
    assert table.tolist() == [[*pair, count] for pair, count in np.ndenumerate(expected) if count]
    assert torch.equal(counts[0].table(), table)  # looking at it changes nothing


def test_pairs_that_wait_are_counted_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "MAX_PENDING", 8)
    counts = ConfusionCounts(1000)
    for _ in range(50):
        counts.add(torch.tensor([3, 999, 3]), torch.tensor([3, 0, 4]))
    assert sum(map(len, counts._pending)) < 8
    assert counts.table().tolist() == [[3, 3, 50], [3, 4, 50], [999, 0, 50]]
