from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics import confusion
from pipeline.metrics.confusion import ConfusionCounts


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
        counts[number % ranks].add_pairs(torch.from_numpy(true), torch.from_numpy(predicted))
    for other in counts[1:]:
        counts[0].merge(other.table())
    table = counts[0].table()
    assert table.tolist() == [[*pair, count] for pair, count in np.ndenumerate(expected) if count]
    assert torch.equal(counts[0].table(), table)  # looking at it changes nothing


def test_pairs_that_wait_are_counted_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "MAX_PENDING", 8)
    counts = ConfusionCounts(1000)
    for _ in range(50):
        counts.add_pairs(torch.tensor([3, 999, 3]), torch.tensor([3, 0, 4]))
    assert sum(map(len, counts._pending)) < 8
    assert counts.table().tolist() == [[3, 3, 50], [3, 4, 50], [999, 0, 50]]


def test_a_batch_is_counted_by_its_likeliest_classes() -> None:
    counts = ConfusionCounts(3)
    logits = torch.tensor([[0.0, 2, 1], [3, 0, 0], [0, 0, 1]])
    counts.add(logits, SimpleNamespace(targets={"label": torch.tensor([1, 2, 0])}, weights=torch.tensor([1.0, 1, 0])))
    assert counts.state().tolist() == [[1, 1, 1], [2, 0, 1]]
    assert counts.measures() == {}


def test_models_share_the_files(tmp_path: Path) -> None:
    for number, model in enumerate(("one", "two")):
        counts = ConfusionCounts(2)
        counts.add_pairs(torch.tensor([0, 1, 1]), torch.tensor([0, 1, number]))
        counts.write(tmp_path, model, ["a", "b"])
    assert (tmp_path / "per_class.csv").read_text().splitlines() == [
        "model,class,samples,right,predicted",
        "one,a,1,1,2",
        "one,b,2,1,1",
        "two,a,1,1,1",
        "two,b,2,2,2",
    ]
    with np.load(tmp_path / "confusion.npz") as arrays:
        assert arrays["classes"].tolist() == ["a", "b"]
        assert arrays["arr_0"].tolist() == [[0, 0, 1], [1, 0, 1], [1, 1, 1]]
        assert arrays["arr_1"].tolist() == [[0, 0, 1], [1, 1, 2]]
