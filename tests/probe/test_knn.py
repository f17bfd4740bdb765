from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.probe.knn import best_k, right_by_k, vote
from pipeline.probe.rows import Rows

pytestmark = pytest.mark.usefixtures("one_rank")


def by_loops(train: Rows, test: Rows, k: int, temperature: float) -> int:
    """One query after the other, as the papers write it."""
    right = 0
    table = F.normalize(test.features.double()) @ F.normalize(train.features.double()).T
    for cosines, label in zip(table.tolist(), test.labels.tolist(), strict=True):
        votes = [0.0] * 4
        for row in sorted(range(len(cosines)), key=lambda row: (-cosines[row], row))[:k]:
            votes[train.labels[row]] += math.exp(cosines[row] / temperature)
        right += votes.index(max(votes)) == label
    return right


def test_as_one_query_after_the_other(train: Rows, test: Rows) -> None:
    ks = [1, 5, 30]
    assert right_by_k(test, train, ks, 4, 0.07) == {k: by_loops(train, test, k, 0.07) for k in ks}


def test_blocks_of_the_gallery_change_nothing(train: Rows, test: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = right_by_k(test, train, [7], 4, 0.1)
    monkeypatch.setattr("pipeline.probe.rows.SENT_AT_ONCE", 13)
    monkeypatch.setattr("pipeline.probe.similarity.QUERIES_AT_ONCE", 11)
    assert right_by_k(test, train, [7], 4, 0.1) == whole


def test_of_equal_neighbours_the_earlier_counts() -> None:
    same = torch.ones(6, 3)
    train = Rows(same, torch.tensor([2, 1, 1, 0, 0, 0]))
    query = Rows(same[:1], torch.tensor([2]))
    assert right_by_k(query, train, [1, 3, 6], 3, 0.07) == {1: 1, 3: 0, 6: 0}


def test_near_neighbours_outvote_many_far_ones() -> None:
    cosines, labels = torch.tensor([[0.9, 0.5, 0.5]]).double(), torch.tensor([[1, 0, 0]])
    assert vote(cosines, labels, 2, temperature=0.07).tolist() == [1]
    assert vote(cosines, labels, 2, temperature=10.0).tolist() == [0]


def test_of_equal_votes_the_first_class_wins() -> None:
    assert vote(torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[3, 1]]), 4, 0.07).tolist() == [1]


def test_of_equally_good_k_the_smallest() -> None:
    assert best_k({20: 7, 5: 7, 1: 6}) == 5
